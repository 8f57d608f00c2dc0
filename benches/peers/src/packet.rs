// SPDX-License-Identifier: Apache-2.0
//! Packets as they lie in a buffer: a virtio-net header of 12 bytes, then the frame.

/// struct virtio_net_hdr_v1 (virtio 1.3, 5.1.6).
pub const HEADER_BYTES: usize = 12;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
const SOURCE: [u8; 6] = [0x52, 0x54, 0x00, 0xbe, 0x0c, 0x01];
/// Everybody: a device's receive filter lets it pass, whatever the device's address.
const DESTINATION: [u8; 6] = [0xff; 6];
const ETHERNET_BYTES: usize = 14;
const IP_BYTES: usize = 20;
const TCP_BYTES: usize = 20;
const HDR_F_NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_SIZE: u16 = 1448;

/// A frame of `bytes` bytes of a local experimental ethertype, which no stack answers.
pub fn plain(bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER_BYTES + bytes];
    let frame = &mut packet[HEADER_BYTES..];
    frame[..6].copy_from_slice(&DESTINATION);
    frame[6..12].copy_from_slice(&SOURCE);
    frame[12..14].copy_from_slice(&ETHERTYPE_EXPERIMENTAL);
    packet
}

/// `gso` or `plain`.
pub fn make(bytes: usize, is_gso: bool) -> Vec<u8> {
    if is_gso {
        gso(bytes)
    } else {
        plain(bytes)
    }
}

/// A UDP frame of one of many flows, which a tap with several queues spreads over them.
pub fn of_flow(bytes: usize, flow: u16) -> Vec<u8> {
    let mut packet = plain(bytes);
    let frame = &mut packet[HEADER_BYTES..];
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV4);
    let ip = &mut frame[ETHERNET_BYTES..];
    let ip_bytes = (bytes - ETHERNET_BYTES) as u16;
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&ip_bytes.to_be_bytes());
    ip[8] = 64;
    ip[9] = 17;
    ip[12..16].copy_from_slice(&[192, 0, 2, 1]);
    ip[16..20].copy_from_slice(&[192, 0, 2, 2]);
    let udp = &mut ip[IP_BYTES..];
    udp[..2].copy_from_slice(&(49152 + flow).to_be_bytes());
    udp[2..4].copy_from_slice(&9u16.to_be_bytes());
    udp[4..6].copy_from_slice(&(ip_bytes - IP_BYTES as u16).to_be_bytes());
    packet
}

/// A TCP segment of `bytes` bytes that is to be cut into segments of 1448 (TSO).
pub fn gso(bytes: usize) -> Vec<u8> {
    let mut packet = plain(bytes);
    packet[0] = HDR_F_NEEDS_CSUM;
    packet[1] = GSO_TCPV4;
    let headers = (ETHERNET_BYTES + IP_BYTES + TCP_BYTES) as u16;
    packet[2..4].copy_from_slice(&headers.to_le_bytes());
    packet[4..6].copy_from_slice(&GSO_SIZE.to_le_bytes());
    packet[6..8].copy_from_slice(&((ETHERNET_BYTES + IP_BYTES) as u16).to_le_bytes());
    packet[8..10].copy_from_slice(&16u16.to_le_bytes());
    let frame = &mut packet[HEADER_BYTES..];
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV4);
    let ip = &mut frame[ETHERNET_BYTES..];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((bytes - ETHERNET_BYTES) as u16).to_be_bytes());
    ip[8] = 64;
    ip[9] = 6;
    ip[12..16].copy_from_slice(&[192, 0, 2, 1]);
    ip[16..20].copy_from_slice(&[192, 0, 2, 2]);
    ip[IP_BYTES + 12] = 0x50;
    packet
}
