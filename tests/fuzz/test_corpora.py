# SPDX-License-Identifier: Apache-2.0
"""The corpora in the repository: written here (with VDPA_NET_WRITE_CORPUS set), and run by their targets."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from corpora import SEEDS
from fuzz.operations import Input, Language
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "fuzz/corpus"
NAMES = sorted(SEEDS)


def target(name: str) -> Callable[[bytes], None]:
    run: Callable[[bytes], None] = importlib.import_module(f"fuzz.targets.{name}").run
    return run


def test_every_target_has_seeds() -> None:
    modules = {path.stem for path in (ROOT / "fuzz/targets").glob("[a-z]*.py")}
    assert modules == set(SEEDS)


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_what_its_tests_write(name: str) -> None:
    seeds = {f"{seed}.bin": data for seed, data in SEEDS[name]().items()}
    folder = CORPUS / name
    if "VDPA_NET_WRITE_CORPUS" in os.environ:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, data in seeds.items():
            (folder / seed).write_bytes(data)
    different = [
        seed
        for seed, data in seeds.items()
        if not (folder / seed).is_file() or (folder / seed).read_bytes() != data
    ]
    assert not different, f"run VDPA_NET_WRITE_CORPUS=1 pytest {Path(__file__).name}"


@pytest.mark.parametrize("name", NAMES)
def test_every_file_of_a_corpus_runs(name: str) -> None:
    run = target(name)
    for path in sorted((CORPUS / name).iterdir()):
        run(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
def test_steps_survive_the_way_through_bytes(name: str) -> None:
    language: Language = importlib.import_module(f"fuzz.targets.{name}").LANGUAGE
    for data in SEEDS[name]().values():
        # The registers' inputs begin with the profile.
        start = 1 if name == "registers" else 0
        assert language.write(language.read(Input(data[start:]))) == data[start:]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_input(name: str, data: bytes) -> None:
    target(name)(data)
