"""Changes the files in /mnt at random, and writes what is there after each sync into a file.

    random_writer.py SEED ROUNDS SNAPSHOTS

Each round is a random number of operations and a sync. Names, files and directories are used again
at once. Then comes a file `mark-NUMBER` with another sync, which divides the reported operations
into rounds. A line of SNAPSHOTS has the round's files, and the SHA-1 of their bytes.
"""

import ctypes
import hashlib
import json
import os
import random
import stat
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
ROOT = "/mnt"
# For each inode number, which of the files that had it is meant.
identity = {}


def existing(kinds):
    found = []
    for directory, names, files in os.walk(ROOT):
        for name in names + files:
            whole = os.path.join(directory, name)
            kind = "l" if os.path.islink(whole) else "d" if os.path.isdir(whole) else "f"
            if kind in kinds and not name.startswith(("mark-", "lost+found")):
                found.append(whole)
    return sorted(found)


def new(draw):
    place = draw.choice([ROOT] + existing("d"))
    return os.path.join(place, draw.choice("abcdefgh") + str(draw.randrange(3)))


def data(draw):
    return draw.randbytes(draw.choice([1, 100, 3000, 4096, 9000, 50000]))


def step(draw):
    word = draw.choice(
        "create create create mkdir write write append cut rename rename link delete rmdir chmod chown"
        " symlink exchange punch".split()
    )
    kinds = {"rename": "fdl", "exchange": "fd", "delete": "fl", "rmdir": "d", "chmod": "fd", "chown": "fdl"}
    choices = existing(kinds.get(word, "f"))
    if word in ("create", "mkdir", "symlink"):
        name = new(draw)
        if os.path.lexists(name):
            return
        if word == "create":
            with open(name, "wb") as file:
                file.write(data(draw))
        elif word == "mkdir":
            os.mkdir(name)
        else:
            os.symlink("somewhere" * draw.randrange(1, 12), name)
        inode = os.lstat(name).st_ino
        identity[inode] = f"inode {inode}, file {len(identity)}, {draw.random()}"
        return
    if not choices:
        return
    name = draw.choice(choices)
    size = os.lstat(name).st_size
    if word == "write":
        with open(name, "r+b") as file:
            file.seek(draw.randrange(size + 1))
            file.write(data(draw))
    elif word == "append":
        with open(name, "ab") as file:
            file.write(data(draw))
    elif word == "cut":
        os.truncate(name, draw.randrange(2 * size + 1))
    elif word == "punch":
        with open(name, "r+b") as file:
            start = draw.randrange(0, size + 1, 4096)
            LIBC.fallocate(file.fileno(), 3, ctypes.c_long(start), ctypes.c_long(8192))
    elif word == "rename":
        os.rename(name, new(draw))
    elif word == "exchange":
        other = draw.choice(choices)
        LIBC.renameat2(-100, os.fsencode(name), -100, os.fsencode(other), 2)
    elif word == "link":
        os.link(name, new(draw))
    elif word == "delete":
        os.unlink(name)
    elif word == "rmdir":
        os.rmdir(name)
    elif word == "chmod":
        os.chmod(name, draw.choice([0o600, 0o640, 0o755]))
    elif word == "chown":
        os.lchown(name, draw.randrange(3), 0)


def snapshot():
    found = {}
    for path in existing("fdl"):
        known = os.lstat(path)
        sha1 = None
        if stat.S_ISREG(known.st_mode):
            with open(path, "rb") as file:
                sha1 = hashlib.sha1(file.read()).hexdigest()
        found[path.removeprefix(ROOT)] = {
            "id": identity[known.st_ino],
            "is_file": sha1 is not None,
            "size": known.st_size,
            "mode": known.st_mode & 0o7777,
            "user": known.st_uid,
            "modified": known.st_mtime_ns,
            "sha1": sha1,
        }
    return found


def main(seed, rounds, snapshots):
    draw = random.Random(int(seed))
    with open(snapshots, "w") as out:
        print(json.dumps(snapshot()), file=out)
        for number in range(int(rounds)):
            for _ in range(draw.randrange(1, 16)):
                try:
                    step(draw)
                except OSError:
                    # Not empty, a directory in itself, another kind of file in the way.
                    pass
            os.sync()
            print(json.dumps(snapshot()), file=out)
            os.mkdir(ROOT + f"/mark-{number}")
            os.sync()


main(*sys.argv[1:])
