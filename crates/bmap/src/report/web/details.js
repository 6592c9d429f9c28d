// What is known of a file, and of a place on the disk.

// How many pieces are listed.
const PIECE_ROWS = 500;

const KIND_NAMES = { f: "file", d: "directory", s: "symbolic link", m: "metadata", u: "unused", l: "logical volume", b: "mapped device", p: "partition", v: "disk" };

// The pieces of an object: intervals that follow one another on the disk and in the object are one. Volumes have those of
// the map.
function piecesOf(model, object) {
  if (!model.owns(object)) {
    const own = model.volumes.filter((volume) => volume.object === object);
    return own.map(({ disk, start, end }) => ({ disk: model.disks.find(({ number }) => number === disk), start, end, fileOffset: NaN, role: "" }));
  }
  const pieces = [];
  for (const { disk, interval } of model.intervalsOf(object)) {
    const [start, end] = [disk.starts[interval], disk.starts[interval + 1]];
    const fileOffset = fileOffsetAt(model, disk, interval, object);
    const role = roleText(model, disk, interval);
    const last = pieces[pieces.length - 1];
    const goesOn =
      last && last.disk === disk && last.end === start && last.role === role &&
      (Number.isNaN(fileOffset) ? Number.isNaN(last.fileOffset) : last.fileOffset + (start - last.start) === fileOffset);
    if (goesOn) last.end = end;
    else pieces.push({ disk, start, end, fileOffset, role });
  }
  return pieces;
}

// Where in the object an interval begins; of a group the map tells it of the first member.
function fileOffsetAt(model, disk, interval, object) {
  if (!disk.fileOffsets || model.members(disk.owners[interval])[0] !== model.file(object)) return NaN;
  return disk.fileOffsets[interval];
}

function roleText(model, disk, interval) {
  const words = model.about.flags.filter((_, bit) => (disk.flags[interval] >> bit) & 1);
  if (disk.copies[interval] > 0) words.unshift(`copy ${disk.copies[interval] + 1}`);
  return words.join(", ");
}

// What is at a byte, in a few lines.
function placeText(model, disk, offset) {
  const interval = intervalAt(disk, offset);
  const members = model.members(disk.owners[interval]);
  const lines = [];
  for (const object of members.slice(0, 4)) {
    const letter = model.letter(object);
    if (!model.owns(object)) continue;
    const inside = fileOffsetAt(model, disk, interval, object) + (offset - disk.starts[interval]);
    const more = model.moreNames[object] ? ` (+${plural(model.moreNames[object], "name")})` : "";
    lines.push(`${model.label(object)}${more}${Number.isNaN(inside) ? "" : ` + ${offsetText(inside)}`}`);
    const pieces = model.pieces[object] > 1 ? ` in ${countText(model.pieces[object])} pieces` : "";
    const size = model.size[object] ? ` of ${sizeText(model.size[object] - 1)}` : "";
    lines.push(`${KIND_NAMES[letter]}${size}, ${sizeText(model.onDisk[object])} on disk${pieces}`);
  }
  if (members.length > 4) lines.push(`and ${plural(members.length - 4, "more file")}`);
  const role = roleText(model, disk, interval);
  if (role) lines.push(role);
  if (lines.length === 0) lines.push(`in no file, for ${sizeText(disk.starts[interval + 1] - disk.starts[interval])}`);
  const volumes = model.volumesAt(disk, offset).map(({ object }) => model.deviceName(object));
  lines.push(`${disk.number}:${offsetText(offset)}${volumes.length ? ` on ${volumes.join(", ")}` : ""}`);
  return lines.join("\n");
}

// Fills the panel about an object. `show` is called with a disk and a range, `close` when nothing is to be chosen.
function showDetails(model, object, pieces, { show, close }) {
  const panel = byId("details");
  const file = model.file(object);
  const rows = [["kind", KIND_NAMES[model.letter(object)]], ["device", model.deviceName(object)]];
  if (file !== object) rows.push(["same file as", model.path(file)]);
  if (model.moreNames[file]) rows.push(["more names", countText(model.moreNames[file])]);
  if (model.size[object]) rows.push(["size", exactSize(model.size[object] - 1)]);
  if (model.owns(object)) {
    rows.push(["on disk", exactSize(model.onDisk[file])]);
    rows.push(["pieces", countText(model.pieces[file])]);
    if (model.shared[file]) rows.push(["shared", exactSize(model.shared[file])]);
  }
  if (model.inode[object]) rows.push(["inode", String(model.inode[object] - 1)]);
  if (model.modified[object]) rows.push(["changed", timeText(unzigzag(model.modified[object] - 1))]);
  const marks = model.about.marks.filter((_, bit) => (model.marks[object] >> bit) & 1);
  if (marks.length) rows.push(["marks", marks.join(", ")]);

  const knowsOffsets = pieces.some(({ fileOffset }) => !Number.isNaN(fileOffset));
  const placeName = (disk, start, role) => `${disk.number}:${offsetText(start)}${role ? `, ${role}` : ""}`;
  const columns = ["length", ...(knowsOffsets ? ["in file at"] : []), "on disk at"];
  const caption = pieces.length > PIECE_ROWS ? `The first ${countText(PIECE_ROWS)} places of ${countText(pieces.length)}` : "Places on the disks";
  const places = table(caption, columns, pieces.slice(0, PIECE_ROWS), ({ disk, start, end, fileOffset, role }) => [
    sizeText(end - start),
    ...(knowsOffsets ? [Number.isNaN(fileOffset) ? "" : offsetText(fileOffset)] : []),
    element("button", { type: "button", onclick: () => show(disk, start, end) }, placeName(disk, start, role)),
  ]);
  const zoom = element("button", { type: "button", id: "details-zoom", disabled: pieces.length === 0 }, "Zoom to it");
  zoom.addEventListener("click", () => show(pieces[0].disk, pieces[0].start, pieces[0].end));
  const done = element("button", { type: "button", id: "details-close" }, "Choose nothing");
  done.addEventListener("click", close);
  panel.replaceChildren(
    element("h2", {}, model.label(object)),
    element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    element("div", { className: "actions" }, zoom, done),
    element("div", { className: "scroll", tabIndex: 0 }, pieces.length ? places : "It has no place of its own on the disks."),
  );
  panel.hidden = false;
}
