// The map: objects, directories, and the disks with their intervals.
//
// Objects are numbered as in the map. An *owner* is what an interval belongs to: 0 is nobody, then come the objects,
// and then the groups of objects that share bytes.

class Model {
  constructor({ about, columns }) {
    this.about = about;
    this.readObjects(columns);
    this.readDirectories(columns);
    this.readGroups(columns);
    const expected = new Float64Array(this.ownerCount);
    this.disks = about.disks.map((disk) => readDisk(disk, columns, expected));
    this.volumes = readVolumes(columns, this.kind);
    this.indexIntervals();
  }

  readObjects(columns) {
    this.names = columns.texts("object.name");
    const count = this.names.length;
    const column = (name, Type) => columns.numbers(`object.${name}`, Type, count);
    this.kind = column("kind", Uint8Array);
    this.device = column("device", Uint16Array);
    this.directory = column("directory", Uint32Array);
    // 0, or 1 more than the object that is the same file by its first name.
    this.same = column("same", Uint32Array);
    this.onDisk = column("on_disk");
    this.pieces = column("pieces");
    this.shared = column("shared");
    this.moreNames = column("more_names", Uint32Array);
    // 0 where they are unknown, else 1 more.
    this.size = column("size");
    this.inode = column("inode");
    this.marks = column("marks", Uint16Array);
    this.modified = column("modified");
    this.knowsTimes = columns.has("object.modified");
    this.deviceNames = columns.texts("device.name");
  }

  // Directory 0 is none; a parent comes before its children.
  readDirectories(columns) {
    const names = columns.texts("directory.name");
    const parents = columns.numbers("directory.parent", Uint32Array, names.length);
    this.directoryParent = new Uint32Array(names.length + 1);
    this.directoryDevice = new Uint16Array(names.length + 1);
    this.directoryParent.set(parents, 1);
    this.directoryDevice.set(columns.numbers("directory.device", Uint16Array, names.length), 1);
    this.directoryPath = [""];
    for (let i = 0; i < names.length; i++) {
      this.directoryPath.push(this.directoryPath[parents[i]] + names[i]);
    }
  }

  readGroups(columns) {
    const counts = columns.numbers("group.count", Uint32Array);
    this.groupMembers = columns.numbers("group.member", Uint32Array, counts.reduce((a, b) => a + b, 0));
    this.groupStart = new Uint32Array(counts.length + 1);
    for (let i = 0; i < counts.length; i++) this.groupStart[i + 1] = this.groupStart[i] + counts[i];
    this.ownerCount = 1 + this.names.length + counts.length;
  }

  // For each object the places of its intervals: numbers in the intervals of all disks, one disk after the other.
  indexIntervals() {
    const first = new Uint32Array(this.names.length + 1);
    let before = 0;
    for (const disk of this.disks) {
      disk.before = before;
      before += disk.owners.length;
      for (const owner of disk.owners) this.eachMember(owner, (object) => first[object + 1]++);
    }
    for (let i = 1; i < first.length; i++) first[i] += first[i - 1];
    const next = first.slice();
    const places = new Uint32Array(first[first.length - 1]);
    for (const disk of this.disks) {
      disk.owners.forEach((owner, interval) => {
        this.eachMember(owner, (object) => (places[next[object]++] = disk.before + interval));
      });
    }
    this.firstInterval = first;
    this.intervalPlaces = places;
  }

  eachMember(owner, visit) {
    if (owner === 0) return;
    if (owner <= this.names.length) return visit(owner - 1);
    const group = owner - 1 - this.names.length;
    for (let i = this.groupStart[group]; i < this.groupStart[group + 1]; i++) visit(this.groupMembers[i]);
  }

  // The objects that own an interval, the most specific first.
  members(owner) {
    const members = [];
    this.eachMember(owner, (object) => members.push(object));
    return members;
  }

  // The object whose blocks an object's are: itself, or the first name of the file.
  file(object) {
    return this.same[object] ? this.same[object] - 1 : object;
  }

  // The intervals of an object, as {disk, interval}.
  intervalsOf(object) {
    const file = this.file(object);
    const intervals = [];
    let disk = 0;
    for (let i = this.firstInterval[file]; i < this.firstInterval[file + 1]; i++) {
      const place = this.intervalPlaces[i];
      while (place >= this.disks[disk].before + this.disks[disk].owners.length) disk++;
      intervals.push({ disk: this.disks[disk], interval: place - this.disks[disk].before });
    }
    return intervals;
  }

  letter(object) {
    return this.about.kinds[this.kind[object]];
  }

  // Whether it owns bytes, as files, directories and metadata do, or holds what does.
  owns(object) {
    return this.kind[object] <= 2;
  }

  path(object) {
    return this.directoryPath[this.directory[object]] + this.names[object];
  }

  deviceName(object) {
    return this.deviceNames[this.device[object]];
  }

  // Path, or the device where there is none.
  label(object) {
    return this.path(object) || this.deviceName(object);
  }

  // The volumes that hold a byte, the innermost first.
  volumesAt(disk, offset) {
    return this.volumes.filter(
      (volume) => volume.disk === disk.number && volume.start <= offset && offset < volume.end,
    );
  }
}

function readDisk({ number, unit, images }, columns, expected) {
  const name = (column) => `disk${number}.${column}`;
  const lengths = columns.numbers(name("length"));
  const count = lengths.length;
  // Where each interval starts in bytes, and where the last one ends.
  const starts = new Float64Array(count + 1);
  for (let i = 0; i < count; i++) starts[i + 1] = starts[i] + lengths[i] * unit;

  const steps = columns.numbers(name("owner"), Float64Array, count);
  const owners = new Uint32Array(count);
  for (let i = 0, owner = 0; i < count; i++) owners[i] = owner += unzigzag(steps[i]);

  let fileOffsets = null;
  if (columns.has(name("file_offset"))) {
    fileOffsets = columns.numbers(name("file_offset"));
    for (let i = 0; i < count; i++) {
      if (fileOffsets[i] === 0) {
        fileOffsets[i] = NaN;
        continue;
      }
      fileOffsets[i] = expected[owners[i]] + unzigzag(fileOffsets[i] - 1);
      const end = fileOffsets[i] + (starts[i + 1] - starts[i]);
      expected[owners[i]] = Math.min(end, Number.MAX_SAFE_INTEGER);
    }
  }
  const copies = columns.numbers(name("copy"), Uint8Array, count);
  const flags = columns.numbers(name("flags"), Uint8Array, count);
  return { number, images, size: starts[count], starts, owners, fileOffsets, copies, flags, before: 0 };
}

function readVolumes(columns, kind) {
  const column = (name, count) => columns.numbers(`volume.${name}`, Float64Array, count);
  const lengths = column("length");
  const [objects, disks, starts] = ["object", "disk", "start"].map((name) => column(name, lengths.length));
  const volumes = Array.from(lengths, (length, i) => ({
    object: objects[i],
    disk: disks[i],
    start: starts[i],
    end: starts[i] + length,
  }));
  return volumes.sort((a, b) => kind[a.object] - kind[b.object]);
}

// How many places of volumes are labelled.
const MAX_LABELS = 200;

// The places of a disk's volumes that hold no other volume, with what to call them.
function volumeLabels(model, disk) {
  const here = model.volumes.filter((volume) => volume.disk === disk.number);
  const largest = here.sort((a, b) => b.end - b.start - (a.end - a.start)).slice(0, MAX_LABELS);
  const kinds = new Map(model.about.filesystems.map(({ device, kind }) => [device, `, ${kind}`]));
  const holds = (a, b) => model.kind[b.object] < model.kind[a.object] && a.start <= b.start && b.end <= a.end;
  return largest
    .filter((volume) => !largest.some((other) => holds(volume, other)))
    .map(({ object, start, end }) => ({ start, end, text: model.deviceName(object) + (kinds.get(model.deviceName(object)) ?? "") }));
}

// The interval that holds a byte of a disk, which must be on it.
function intervalAt(disk, offset) {
  return lowerBound(disk.starts, offset + 0.5, 0, disk.owners.length) - 1;
}

// The first place in `numbers` from `low` on that is not below `limit`; `high` if there is none.
function lowerBound(numbers, limit, low, high) {
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (numbers[middle] < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}
