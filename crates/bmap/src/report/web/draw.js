// The picture of a disk, and the part of it that is seen.

// A pixel or two is the smallest that is painted: what lies in it is mixed.
const SMALLEST = 2;
// Of the intervals in one pixel at most so many are mixed.
const MIXED = 64;

// Paints the visible part of a disk into `pixels`. `square` is the whole disk's in pixels.
function paint(pixels, width, height, square, disk, colours, lit) {
  const { starts, owners, size } = disk;

  // The colour of the bytes from `from` to `to`, which are in the intervals `low` to `high`.
  const mixed = (from, to, low, high) => {
    const step = Math.max(1, Math.floor((high - low) / MIXED));
    let [red, green, blue, sum] = [0, 0, 0, 0];
    for (let i = low; i < high; i += step) {
      const colour = colours[owners[i]];
      if (lit && lit[owners[i]]) return colour;
      const bytes = Math.min(to, starts[i + 1]) - Math.max(from, starts[i]);
      red += (colour & 255) * bytes;
      green += ((colour >>> 8) & 255) * bytes;
      blue += ((colour >>> 16) & 255) * bytes;
      sum += bytes;
    }
    return pixel([red / sum, green / sum, blue / sum]);
  };

  const fill = (left, top, side, colour) => {
    const x0 = Math.max(0, Math.round(left));
    const x1 = Math.min(width, Math.round(left + side));
    const y0 = Math.max(0, Math.round(top));
    const y1 = Math.min(height, Math.round(top + side));
    if (x1 <= x0) return;
    for (let y = y0; y < y1; y++) pixels.fill(colour, y * width + x0, y * width + x1);
  };

  // As `quarters` has it, but without making objects: this runs half a million times for one picture.
  const descend = (x, y, ax, ay, bx, by, from, length, low, high) => {
    const side = Math.abs(ax) + Math.abs(ay);
    const left = Math.min(x, x + ax + bx);
    const top = Math.min(y, y + ay + by);
    if (left >= width || top >= height || left + side <= 0 || top + side <= 0) return;
    if (high - low === 1) return fill(left, top, side, colours[owners[low]]);
    if (side < SMALLEST) return fill(left, top, side, mixed(from, from + length, low, high));
    [ax, ay, bx, by, length] = [ax / 2, ay / 2, bx / 2, by / 2, length / 4];
    let first = low;
    for (let quarter = 0; quarter < 4; quarter++) {
      const begin = from + quarter * length;
      const end = lowerBound(starts, begin + length, first + 1, high);
      if (quarter === 0) descend(x, y, bx, by, ax, ay, begin, length, first, end);
      else if (quarter === 1) descend(x + ax, y + ay, ax, ay, bx, by, begin, length, first, end);
      else if (quarter === 2) descend(x + ax + bx, y + ay + by, ax, ay, bx, by, begin, length, first, end);
      else descend(x + ax + 2 * bx, y + ay + 2 * by, -bx, -by, -ax, -ay, begin, length, first, end);
      first = end < high && starts[end] === begin + length ? end : end - 1;
    }
  };
  descend(square.x, square.y, square.ax, square.ay, square.bx, square.by, 0, size, 0, owners.length);
}

// Where the square is: its side in screen pixels of the whole disk, and the point of the disk's square in the middle of the canvas.
class View {
  constructor() {
    this.resize(1, 1, 1);
    this.reset(1);
  }

  resize(width, height, ratio) {
    [this.width, this.height, this.ratio] = [width, height, ratio];
  }

  // Shows the whole of a disk of so many bytes.
  reset(size) {
    this.zoom = 1;
    [this.x, this.y] = [0.5, 0.5];
    // As far as a sector of 512 bytes is a quarter of the canvas.
    this.maxZoom = Math.max(1, Math.sqrt(size / 512) / 4);
  }

  get side() {
    return Math.min(this.width, this.height) * this.zoom;
  }

  // The disk's square in pixels of the canvas.
  get square() {
    return rootSquare(this.width / 2 - this.x * this.side, this.height / 2 - this.y * this.side, this.side);
  }

  clamp() {
    this.zoom = Math.min(this.maxZoom, Math.max(1, this.zoom));
    const limit = (at, length) => {
      const half = length / 2 / this.side;
      return half >= 0.5 ? 0.5 : Math.min(1 - half, Math.max(half, at));
    };
    [this.x, this.y] = [limit(this.x, this.width), limit(this.y, this.height)];
  }

  // Zooms so that the point of the canvas stays where it is.
  zoomBy(factor, px = this.width / 2, py = this.height / 2) {
    const before = this.toDisk(px, py);
    this.zoom = Math.min(this.maxZoom, Math.max(1, this.zoom * factor));
    const after = this.toDisk(px, py);
    this.x += before.x - after.x;
    this.y += before.y - after.y;
    this.clamp();
  }

  panBy(dx, dy) {
    this.x -= dx / this.side;
    this.y -= dy / this.side;
    this.clamp();
  }

  // A point of the canvas as one of the unit square.
  toDisk(px, py) {
    return { x: this.x + (px - this.width / 2) / this.side, y: this.y + (py - this.height / 2) / this.side };
  }

  toCanvas({ x, y }) {
    return { x: this.width / 2 + (x - this.x) * this.side, y: this.height / 2 + (y - this.y) * this.side };
  }

  // The byte of a disk at a point of the canvas; null outside of it.
  offsetAt(disk, px, py) {
    const { x, y } = this.toDisk(px, py);
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
    return Math.min(disk.size - 1, Math.floor(fractionAt(x, y) * disk.size));
  }

  // Moves to where the bytes from `start` to `end` are, so that they fill a good part of the canvas.
  showRange(disk, start, end) {
    let [left, top, right, bottom] = [1, 1, 0, 0];
    const part = Math.sqrt((end - start) / disk.size);
    coverPart(rootSquare(0, 0, 1), start / disk.size, end / disk.size, Math.max(part / 8, 1e-9), 2, 2, (x, y, side) => {
      [left, top] = [Math.min(left, x), Math.min(top, y)];
      [right, bottom] = [Math.max(right, x + side), Math.max(bottom, y + side)];
    });
    this.zoom = 0.5 / Math.max(right - left, bottom - top);
    [this.x, this.y] = [(left + right) / 2, (top + bottom) / 2];
    this.clamp();
  }
}

// The two canvases: the picture, and what is drawn over it.
class Canvas {
  constructor(picture, overlay) {
    [this.picture, this.overlay] = [picture, overlay];
    this.view = new View();
  }

  // Takes the size that the page gives; whether it changed.
  fit() {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const box = this.picture.getBoundingClientRect();
    const [width, height] = [Math.max(1, Math.round(box.width * ratio)), Math.max(1, Math.round(box.height * ratio))];
    if (width === this.picture.width && height === this.picture.height) return false;
    for (const canvas of [this.picture, this.overlay]) [canvas.width, canvas.height] = [width, height];
    this.view.resize(width, height, ratio);
    this.view.clamp();
    return true;
  }

  drawPicture(disk, colours, lit, background) {
    const { width, height } = this.picture;
    const context = this.picture.getContext("2d");
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(pixel(rgb(background)));
    paint(pixels, width, height, this.view.square, disk, colours, lit);
    context.putImageData(image, 0, 0);
  }

  clearOverlay() {
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, this.overlay.width, this.overlay.height);
    return context;
  }

  // Adds the bytes from `start` to `end` to the context's path. Of what is smaller than a pixel, a pixel.
  tracePart(context, disk, start, end) {
    const { width, height } = this.overlay;
    coverPart(this.view.square, start / disk.size, end / disk.size, 1, width, height, (x, y, side) => {
      context.rect(x, y, Math.max(1, side), Math.max(1, side));
    });
  }

  // Fills the bytes from `start` to `end` with whole pixels, at least one.
  fillPart(context, disk, start, end) {
    const { width, height } = this.overlay;
    coverPart(this.view.square, start / disk.size, end / disk.size, 1.5, width, height, (x, y, side) => {
      const [left, top] = [Math.round(x), Math.round(y)];
      context.fillRect(left, top, Math.max(1, Math.round(x + side) - left), Math.max(1, Math.round(y + side) - top));
    });
  }

  // Writes the name of each volume into the largest square of it that is seen, if it fits in there.
  drawLabels(context, disk, labels, theme) {
    const { view } = this;
    context.font = `${12 * view.ratio}px system-ui, "DejaVu Sans", sans-serif`;
    [context.textAlign, context.textBaseline, context.lineJoin] = ["center", "middle", "round"];
    context.lineWidth = 3 * view.ratio;
    for (const { start, end, text } of labels) {
      let largest = { side: 0 };
      coverPart(view.square, start / disk.size, end / disk.size, 24, view.width, view.height, (left, top, side) => {
        if (side > largest.side) largest = { left, top, side };
      });
      if (context.measureText(text).width > largest.side * 0.95) continue;
      const [x, y] = [largest.left + largest.side / 2, largest.top + largest.side / 2];
      context.strokeStyle = THEMES[theme].page;
      context.fillStyle = THEMES[theme].label;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    }
  }

  // Draws a ring around each of these bytes, so that even the smallest is found.
  drawRings(context, disk, offsets, colour) {
    const { view } = this;
    for (const [width, style] of [[4, "rgba(0,0,0,0.55)"], [2, colour]]) {
      context.lineWidth = width * view.ratio;
      context.strokeStyle = style;
      context.beginPath();
      for (const offset of offsets) {
        const { x, y } = view.toCanvas(pointAt(offset / disk.size));
        if (x < -20 || y < -20 || x > view.width + 20 || y > view.height + 20) continue;
        context.moveTo(x + 9 * view.ratio, y);
        context.arc(x, y, 9 * view.ratio, 0, 2 * Math.PI);
      }
      context.stroke();
    }
  }
}
