"""Makes an empty volume of BitLocker: bitlocker.py IMAGE START SIZE PASSWORD

No free program makes such a volume. `cryptsetup`, which opens it, checks that it is valid. In IMAGE,
SIZE bytes from START become a volume of Windows 7 and later. It is encrypted by XTS-AES with 128 bits
and has one password. Its content is noise. The user of the volume makes the filesystem, which must
not use the last 4 MiB, since the metadata lie there ("BitLocker Drive Encryption (BDE) format
specification" of libbde).
"""

import hashlib
import os
import struct
import sys
import uuid

from cryptography.hazmat.primitives.ciphers.aead import AESCCM

SECTOR, MIB = 512, 1 << 20
HEADER = 16 * SECTOR
XTS_128, CCM_256, STRETCH = 0x8004, 0x2000, 0x1000
NOW = 0x01D0000000000000


def entry(kind, value, data):
    return struct.pack("<HHHH", 8 + len(data), kind, value, 1) + data


def sealed(kind, key, secret, method, counter):
    """A key that is encrypted with another key."""
    clear = struct.pack("<HHHHI", 12 + len(secret), 0, 1, 1, method) + secret
    nonce = struct.pack("<QI", NOW, counter)
    data = AESCCM(key, tag_length=16).encrypt(nonce, clear, None)
    return entry(kind, 5, nonce + data[-16:] + data[:-16])


def stretched(password, salt):
    first = hashlib.sha256(hashlib.sha256(password.encode("utf-16-le")).digest()).digest()
    last = bytes(32)
    for count in range(1 << 20):
        last = hashlib.sha256(last + first + salt + struct.pack("<Q", count)).digest()
    return last


def main(image, start, size, password):
    start, size = int(start), int(size)
    copies = [size - 4 * MIB, size - 3 * MIB, size - 2 * MIB]
    header = size - MIB
    salt, master, data_key = os.urandom(16), os.urandom(32), os.urandom(32)
    protector = entry(0, 3, struct.pack("<I", STRETCH) + salt) + sealed(0, stretched(password, salt), master, CCM_256, 1)
    protector = uuid.uuid4().bytes_le + struct.pack("<QHH", NOW, 0, 0x2000) + protector
    entries = entry(7, 2, "TEST 01.01.2020\0".encode("utf-16-le"))
    entries += entry(2, 8, protector) + sealed(3, master, data_key, XTS_128, 2)
    entries += entry(15, 15, struct.pack("<QQ", header, HEADER))
    length = 48 + len(entries)
    block = struct.pack("<8sHHHHQII", b"-FVE-FS-", 64, 2, 4, 4, size, 0, HEADER // SECTOR)
    block += struct.pack("<4Q", *copies, header)
    block += struct.pack("<4I", length, 1, 48, length) + uuid.uuid4().bytes_le
    block += struct.pack("<IHHQ", 3, XTS_128, 0, NOW) + entries
    boot = bytearray(SECTOR)
    boot[:13] = b"\xeb\x58\x90-FVE-FS-" + struct.pack("<H", SECTOR)
    boot[13] = 8
    boot[160:176] = uuid.UUID("4967d63b-2e29-4ad8-8399-f6a339e3d001").bytes_le
    boot[176:200] = struct.pack("<3Q", *copies)
    boot[510:] = b"\x55\xaa"
    with open(image, "r+b") as file:
        for at, data in [(0, boot)] + [(at, block) for at in copies]:
            file.seek(start + at)
            file.write(data)


main(*sys.argv[1:])
