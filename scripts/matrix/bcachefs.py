#!/usr/bin/env python3
"""Fills an image of an empty bcachefs with files, maps it, and compares the map with the places of
the files' patterns on the disk: bcachefs.py PROGRAM IMAGE. Prints one line for a table.

The kernel of libguestfs's appliance writes the files, so it needs a driver for bcachefs.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

BLOCK = 4096


def pattern(name, block):
    """The content of a block, which occurs nowhere else."""
    seed = hashlib.sha256(f"{name} {block}".encode()).digest()
    return hashlib.shake_256(seed).digest(BLOCK)


def main():
    program, image = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        disk = os.path.join(place, "disk.raw")
        shutil.copy(image, disk)
        files = {f"file{number}": range(1 + number % 5) for number in range(40)}
        tree = os.path.join(place, "tree")
        os.mkdir(tree)
        for name, blocks in files.items():
            with open(os.path.join(tree, name), "wb") as file:
                for block in blocks:
                    file.write(pattern(name, block))
        archive = os.path.join(place, "tree.tar")
        subprocess.run(["tar", "-C", tree, "-cf", archive, "."], check=True)
        commands = f"add {disk} format:raw\nrun\nmount-vfs rw bcachefs /dev/sda /\ntar-in {archive} /\numount /\n"
        made = subprocess.run(["guestfish"], input=commands, text=True, capture_output=True)
        if made.returncode != 0:
            print(made.stderr)
            print("not run: the kernel does not write to the image")
            return 0
        out = os.path.join(place, "map.jsonl")
        mapped = subprocess.run([program, "-q", disk, "-o", out], text=True, capture_output=True)
        print(mapped.stderr)
        if not os.path.exists(out):
            print(f"**no map**, status {mapped.returncode}")
            return 1
        with open(disk, "rb") as file:
            content = file.read()
        where = {content[at : at + BLOCK]: at for at in range(0, len(content), BLOCK)}
        ranges = {}
        with open(out, encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                item = json.loads(line)
                if item["type"] == "f":
                    pieces = [range(piece["start"], piece["end"], BLOCK) for piece in item["ranges"]]
                    ranges[item["path"]] = {at for piece in pieces for at in piece}
        wrong = []
        for name, blocks in files.items():
            right = {where.get(pattern(name, block)) for block in blocks}
            if ranges.get("/" + name, set()) != right:
                wrong.append(name)
        print(f"{len(files)} files, wrong {len(wrong)}, status {mapped.returncode}")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
