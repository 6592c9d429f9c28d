// The Hilbert curve that a disk is drawn along. It begins in the upper left corner of the square and ends in the
// upper right one. Each quarter of a part of the disk is a quarter of that part's square, so what is
// together on the disk is together in the square, however far one zooms in.
//
// A square with its curve is a corner, where the curve begins, and two vectors along the sides: `b` leads from where the
// curve begins to where it ends. All sides lie along the axes.

// The four quarters of a square, in the order of the curve.
function quarters({ x, y, ax, ay, bx, by }) {
  const [hax, hay, hbx, hby] = [ax / 2, ay / 2, bx / 2, by / 2];
  return [
    { x, y, ax: hbx, ay: hby, bx: hax, by: hay },
    { x: x + hax, y: y + hay, ax: hax, ay: hay, bx: hbx, by: hby },
    { x: x + hax + hbx, y: y + hay + hby, ax: hax, ay: hay, bx: hbx, by: hby },
    { x: x + hax + bx, y: y + hay + by, ax: -hbx, ay: -hby, bx: -hax, by: -hay },
  ];
}

function rootSquare(x, y, side) {
  return { x, y, ax: 0, ay: side, bx: side, by: 0 };
}

function leftOf({ x, ax, bx }) {
  return Math.min(x, x + ax + bx);
}

function topOf({ y, ay, by }) {
  return Math.min(y, y + ay + by);
}

function sideOf({ ax, ay }) {
  return Math.abs(ax) + Math.abs(ay);
}

// How far along the curve, from 0 to 1, a point of the unit square is.
function fractionAt(px, py) {
  let square = rootSquare(0, 0, 1);
  let [start, length] = [0, 1];
  for (let depth = 0; depth < 26; depth++) {
    length /= 4;
    const inside = (s) => px >= leftOf(s) && px < leftOf(s) + sideOf(s) && py >= topOf(s) && py < topOf(s) + sideOf(s);
    const quarter = quarters(square).findIndex(inside);
    if (quarter < 0) break;
    square = quarters(square)[quarter];
    start += quarter * length;
  }
  return start;
}

// The point of the unit square that is so far along the curve.
function pointAt(fraction) {
  let square = rootSquare(0, 0, 1);
  for (let depth = 0; depth < 26; depth++) {
    const quarter = Math.min(3, Math.floor(fraction * 4));
    fraction = fraction * 4 - quarter;
    square = quarters(square)[quarter];
  }
  return { x: leftOf(square), y: topOf(square) };
}

// Covers the part of the curve from `start` to `end` (of 1) with squares of at least `smallest`, and calls `visit` with left,
// top and side of each that is inside the window of `width` and `height`.
function coverPart(root, start, end, smallest, width, height, visit) {
  const cover = (square, from, length) => {
    if (from >= end || from + length <= start) return;
    const [left, top, side] = [leftOf(square), topOf(square), sideOf(square)];
    if (left >= width || top >= height || left + side <= 0 || top + side <= 0) return;
    if ((from >= start && from + length <= end) || side <= smallest) return visit(left, top, side);
    quarters(square).forEach((quarter, i) => cover(quarter, from + (i * length) / 4, length / 4));
  };
  cover(root, 0, 1);
}
