"""Makes Windows dynamic disks: dynamic_disks.py mbr|gpt MIB IMAGE...

No free program makes such disks. `ldmtool`, which opens them, and Linux (`block/partitions/ldm.c`)
check that they are valid. The images become disks of one group. The group has a volume of each type
for which there are enough disks: simple, spanned, striped, mirrored, raid5.

A disk with an MBR has one partition of type 0x42, a PRIVHEAD in sector 6, and the database in its last
MiB: a table of contents, and records (VBLK) of the group, disks, volumes, components and partitions. A
disk with a GPT has a partition for the database and a partition for the volumes. The PRIVHEAD is the
last sector of the partition for the database. All numbers are big-endian.
"""

import struct
import subprocess
import sys
import uuid

SECTOR, MIB = 512, 2048
DATABASE = 2048
FIRST = {"mbr": 2048, "gpt": 4096}
# Sectors behind the volumes: the second GPT. The database of a disk with an MBR is not counted.
BEHIND = {"mbr": 0, "gpt": 2048}
GPT_DATABASE = 2048
CHUNK = 128
GROUP = "group"
SPACE = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


def guid(name):
    return uuid.uuid5(SPACE, name)


def padded(text, length):
    return text.encode().ljust(length, b"\0")


def number(value):
    """The length of an integer in bytes, then the integer."""
    data = value.to_bytes(max(1, (value.bit_length() + 7) // 8), "big")
    return bytes([len(data)]) + data


def string(text):
    return bytes([len(text)]) + text.encode()


class Group:
    """The records of a group of disks."""

    def __init__(self, disks):
        self.disks = disks
        self.records = []
        self.counts = {1: 0, 2: 0, 3: 0, 4: 0}
        self.ends = [0] * disks
        self.last_id = 0
        self.add(0x35, 0, string(GROUP) + string(str(guid(GROUP))) + bytes(12))
        self.disk_ids = []
        for disk in range(disks):
            name = f"Disk{disk + 1}"
            body = string(name) + string(str(guid(name))) + string("") + bytes(12)
            self.disk_ids.append(self.add(0x34, 0, body))

    def add(self, kind, flags, body):
        self.last_id += 1
        body = number(self.last_id) + body
        self.records.append((kind, flags, body))
        if kind & 0xF in self.counts:
            self.counts[kind & 0xF] += 1
        return self.last_id

    def volume(self, name, size, parts, component, columns=0, copies=1):
        """Adds a volume of `size` MiB. `parts` has its disks, with the MiB on each.

        A mirrored volume has a component for each copy.
        """
        kind, word = (4, "raid5") if component == 3 else (3, "gen")
        body = string(name) + string(word) + string("") + padded("ACTIVE", 14)
        body += bytes([kind, 0, 1, 0, 0, 0, 0]) + number(copies) + bytes(16) + number(size * MIB) + bytes(4)
        volume = self.add(0x51, 0, body + b"\x07" + guid(name).bytes)
        each = len(parts) // copies
        for copy in range(copies):
            body = string(f"{name}-{copy + 1}") + string("ACTIVE") + bytes([component, 0, 0, 0, 0]) + number(each)
            body += bytes(16) + number(volume) + b"\0"
            body += number(CHUNK) + number(columns) if columns else b""
            owner = self.add(0x32, 0x10 if columns else 0, body)
            offset = 0
            for index, (disk, length) in enumerate(parts[copy * each : (copy + 1) * each]):
                body = string(f"{name}-{copy + 1}-{index + 1}") + bytes(12)
                body += struct.pack(">QQ", self.ends[disk], offset) + number(length * MIB)
                body += number(owner) + number(self.disk_ids[disk]) + number(index)
                self.add(0x33, 0x08, body)
                self.ends[disk] += length * MIB
                offset += 0 if columns else length * MIB

    def database(self):
        """The database in the last MiB of each disk, without its PRIVHEADs."""
        blocks = bytearray()
        for sequence, (kind, flags, body) in enumerate(self.records, 4):
            head = struct.pack(">4sIIHHHBBI", b"VBLK", sequence, sequence, 0, 1, 0, flags, kind, len(body))
            assert len(head + body) <= 128, "a record is larger than a block"
            blocks += (head + body).ljust(128, b"\0")
        while len(blocks) % SECTOR:
            sequence = 4 + len(blocks) // 128
            blocks += struct.pack(">4sIIHH", b"VBLK", sequence, 0, 0, 0).ljust(128, b"\0")
        counts = struct.pack(">4I", *(self.counts[kind] for kind in (1, 2, 3, 4))) + bytes(12)
        head = struct.pack(">4s3I3H", b"VMDB", 4 + len(blocks) // 128, 128, SECTOR, 1, 4, 10)
        head += padded(GROUP, 31) + padded(str(guid(GROUP)), 64) + struct.pack(">QQ", 9, 9) + counts * 2 + bytes(8)
        bitmap = lambda name, start, size: struct.pack(">8sHQQQ", name, 0, start, size, 1)
        toc = struct.pack(">8sII I16x", b"TOCBLOCK", 1, 0, 1)
        toc = (toc + bitmap(b"config", 17, 1482) + bitmap(b"log", 1499, 224)).ljust(SECTOR, b"\0")
        data = bytearray(DATABASE * SECTOR)
        for sector in (1, 2, 2045, 2046):
            data[sector * SECTOR : (sector + 1) * SECTOR] = toc
        content = head.ljust(SECTOR, b"\0") + blocks
        data[17 * SECTOR : 17 * SECTOR + len(content)] = content
        return data

    def write(self, path, disk, sectors, style):
        config = GPT_DATABASE if style == "gpt" else sectors - DATABASE
        first, end = FIRST[style], sectors - BEHIND[style] - (0 if style == "gpt" else DATABASE)
        assert first + self.ends[disk] <= end, "the volumes do not fit"
        head = struct.pack(">8sIHH4Q", b"PRIVHEAD", 0, 2, 11, 0, 0, 0, 0)
        head += padded(str(guid(f"Disk{disk + 1}")), 64) + padded(str(guid("host")), 64)
        head += padded(str(guid(GROUP)), 64) + padded(GROUP, 32) + bytes(11)
        head += struct.pack(">6Q", first, end - first, config, DATABASE, 2, 2046)
        head = (head + struct.pack(">II2QI", 1, 1, 1482, 224, 0x1234 + disk)).ljust(SECTOR, b"\0")
        data = self.database()
        for sector in (1856, 2047):
            data[sector * SECTOR : (sector + 1) * SECTOR] = head
        with open(path, "r+b") as image:
            image.truncate(sectors * SECTOR)
            if style == "mbr":
                table = struct.pack("<IH", 0x1234 + disk, 0)
                table += struct.pack("<B3sB3sII", 0, b"\0\x02\0", 0x42, b"\xfe\xff\xff", 63, sectors - 63) + bytes(48)
                image.seek(440)
                image.write(table + b"\x55\xaa")
                image.seek(6 * SECTOR)
                image.write(head)
            image.seek(config * SECTOR)
            image.write(data)
        if style == "gpt":
            table = f"""label: gpt
                label-id: {guid(f"Disk{disk + 1}")}
                start={config}, size={DATABASE}, type=5808C8AA-7E8F-42E0-85D2-E1E90434CFB3
                start={first}, size={end - first}, type=AF9B60A0-1431-4F62-BC68-3311714A69AD"""
            subprocess.run(["sfdisk", "--quiet", path], input=table, text=True, check=True)


def main(style, size, *images):
    group = Group(len(images))
    group.volume("Simple", 32, [(0, 32)], 2)
    if len(images) > 1:
        group.volume("Spanned", 32, [(0, 12), (1, 20)], 2)
        group.volume("Striped", 32, [(0, 16), (1, 16)], 1, columns=2)
        last = len(images) - 1
        group.volume("Mirrored", 32, [(0, 32), (last, 32)], 2, copies=2)
    if len(images) > 2:
        group.volume("Raid5", 32, [(0, 16), (1, 16), (2, 16)], 3, columns=3)
    for disk, image in enumerate(images):
        group.write(image, disk, int(size) * MIB, style)


main(*sys.argv[1:])
