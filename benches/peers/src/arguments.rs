// SPDX-License-Identifier: Apache-2.0
//! The command line: `--name value` and `--switch`.

use std::collections::HashMap;

use crate::error::{Error, Result};

/// Options that take no value.
const SWITCHES: [&str; 7] = ["both", "gentle", "gso", "hugepages", "log", "lossy", "napi"];

/// The options as given; each may be asked for once.
pub struct Arguments {
    command: Option<String>,
    values: HashMap<String, String>,
}

impl Arguments {
    /// Read the process's command line.
    pub fn from_env() -> Result<Self> {
        let usage = |error: lexopt::Error| Error::Usage(error.to_string());
        let mut parser = lexopt::Parser::from_env();
        let mut arguments = Self {
            command: None,
            values: HashMap::new(),
        };
        while let Some(argument) = parser.next().map_err(usage)? {
            match argument {
                lexopt::Arg::Long(name) => {
                    let name = name.to_owned();
                    let value = if SWITCHES.contains(&name.as_str()) {
                        String::new()
                    } else {
                        let value = parser.value().map_err(usage)?;
                        value.to_string_lossy().into_owned()
                    };
                    arguments.values.insert(name, value);
                }
                lexopt::Arg::Value(value) if arguments.command.is_none() => {
                    arguments.command = Some(value.to_string_lossy().into_owned());
                }
                other => return Err(usage(other.unexpected())),
            }
        }
        Ok(arguments)
    }

    /// The subcommand.
    pub fn command(&mut self) -> Result<String> {
        let command = self.command.take();
        command.ok_or_else(|| Error::Usage("expected a command".into()))
    }

    /// An option that has to be there.
    pub fn text(&mut self, name: &str) -> Result<String> {
        let value = self.values.remove(name);
        value.ok_or_else(|| Error::Usage(format!("--{name} is missing")))
    }

    /// An option with a default.
    pub fn text_or(&mut self, name: &str, default: &str) -> String {
        self.values
            .remove(name)
            .unwrap_or_else(|| default.to_owned())
    }

    /// A number that has to be there.
    pub fn number<T: std::str::FromStr>(&mut self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse()
            .map_err(|_| Error::Usage(format!("--{name} {text}: expected a number")))
    }

    /// A number with a default.
    pub fn number_or<T: std::str::FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        if self.values.contains_key(name) {
            return self.number(name);
        }
        Ok(default)
    }

    /// Whether a switch was given.
    pub fn switch(&mut self, name: &str) -> bool {
        self.values.remove(name).is_some()
    }

    /// Nothing may be left: an option that nobody asked for is a mistake.
    pub fn end(&self) -> Result<()> {
        match self.values.keys().next() {
            Some(name) => Err(Error::Usage(format!("unknown option --{name}"))),
            None => Ok(()),
        }
    }
}
