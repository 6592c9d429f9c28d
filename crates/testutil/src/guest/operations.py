"""Operations on the files of a mounted filesystem: operations.py ROOT LIST

LIST is a file of JSON: "sync" says how each operation reaches the disk ("sync", "twice", "fsync" or
"none"),
"every" after how many operations, "pause" how many seconds to wait then, and "operations" is a list
of lists: a word and its arguments. Paths begin at ROOT. Each operation is printed when it is done, and "synced N" after N operations
have reached the disk.
"""

import ctypes
import json
import os
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2
KEEP_SIZE, PUNCH_HOLE = 1, 2


def checked(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def data(tag, length):
    """Bytes that differ from those of every other tag in each sector."""
    word = b"%09d\n" % tag
    return (word * (length // len(word) + 1))[:length]


def put(path, flags, offset, tag, length):
    fd = os.open(path, flags, 0o644)
    view = memoryview(data(tag, length))
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
    os.close(fd)


def punch(path, offset, length):
    fd = os.open(path, os.O_RDWR)
    mode = KEEP_SIZE | PUNCH_HOLE
    checked(LIBC.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))
    os.close(fd)


def exchange(a, b):
    checked(LIBC.renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE))


def setxattr(path, name, value):
    # Only the inode's time of change shows this, in hundredths of a second.
    time.sleep(0.02)
    os.setxattr(path, name, value.encode())


def remove(path):
    os.unlink(path)


DO = {
    "create": lambda path, tag, length: put(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0, tag, length),
    "write": lambda path, tag, offset, length: put(path, os.O_WRONLY, offset, tag, length),
    "append": lambda path, tag, length: put(path, os.O_WRONLY, os.stat(path).st_size, tag, length),
    "truncate": os.truncate,
    "punch": punch,
    "mkdir": os.mkdir,
    "rmdir": os.rmdir,
    "rename": os.rename,
    "exchange": exchange,
    "link": os.link,
    "symlink": lambda path, target: os.symlink(target, path),
    "delete": remove,
    "unlink": remove,
    "chmod": os.chmod,
    "chown": lambda path, user, group: os.chown(path, user, group),
    "touch": lambda path, seconds: os.utime(path, (seconds, seconds)),
    "setxattr": setxattr,
}
# How many of the first arguments are paths.
PATHS = {"rename": 2, "exchange": 2, "link": 2}


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def main(root, name):
    with open(name) as file:
        work = json.load(file)
    if work["sync"] != "none":
        os.sync()
    touched = {}
    for number, (word, *arguments) in enumerate(work["operations"], 1):
        count = PATHS.get(word, 1)
        paths = [root + path for path in arguments[:count]]
        DO[word](*paths, *arguments[count:])
        print(word, *arguments, flush=True)
        for path in paths:
            touched[path] = touched[os.path.dirname(path)] = True
        if number % work["every"] != 0 and number != len(work["operations"]):
            continue
        if work["sync"] != "none":
            os.sync()
        if work["sync"] == "twice":
            os.sync()
        if work["sync"] == "fsync":
            # sync has written everything. These flush it. A symbolic link cannot be opened.
            for path in touched:
                if os.path.exists(path) and not os.path.islink(path):
                    fsync(path)
        touched.clear()
        print("synced", number, flush=True)
        time.sleep(work.get("pause", 0))


main(*sys.argv[1:])
