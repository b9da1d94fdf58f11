"""A router's server for ports, as PCP (RFC 6887) or NAT-PMP (RFC 6886) has it: run with its outer address and one of the names."""

import ipaddress
import socket
import struct
import subprocess
import sys

outside = ipaddress.IPv4Address(sys.argv[1])
speaks_pcp = sys.argv[2] == "pcp"
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("0.0.0.0", 5351))


def lead(client, inner, outer, lifetime):
    """Opens the port, or closes all of them where the time is over."""
    subprocess.run(["nft", "flush", "chain", "ip", "home", "arriving"], check=True)
    if lifetime:
        rule = f"iifname wan udp dport {outer} dnat to {client}:{inner}"
        subprocess.run(["nft", "add", "rule", "ip", "home", "arriving", *rule.split()], check=True)
    print(f"opened {outer}" if lifetime else "closed", flush=True)


def pcp(packet, client):
    (lifetime,) = struct.unpack("!I", packet[4:8])
    nonce, protocol, inner, outer = packet[24:36], packet[36], *struct.unpack("!HH", packet[40:44])
    lead(client, inner, outer, lifetime)
    head = struct.pack("!BBBBII12x", 2, packet[1] | 0x80, 0, 0, lifetime, 7)
    mapped = ipaddress.IPv6Address(f"::ffff:{outside}").packed
    return head + nonce + struct.pack("!B3xHH", protocol, inner, outer) + mapped


def nat_pmp(packet, client):
    if packet[1] == 0:
        return struct.pack("!BBHI4s", 0, 128, 0, 7, outside.packed)
    inner, outer, lifetime = struct.unpack("!HHI", packet[4:12])
    lead(client, inner, outer, lifetime)
    return struct.pack("!BBHIHHI", 0, packet[1] + 128, 0, 7, inner, outer, lifetime)


print("ready", flush=True)
while True:
    packet, peer = server.recvfrom(2048)
    if packet[0] == 2 and speaks_pcp:
        answer = pcp(packet, peer[0])
    elif packet[0] == 0:
        answer = nat_pmp(packet, peer[0])
    else:
        answer = struct.pack("!BBHI", 0, packet[1] | 0x80, 1, 7)
    server.sendto(answer, peer)
