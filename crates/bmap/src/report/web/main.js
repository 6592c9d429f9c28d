// The page: what is chosen, and what happens when somebody does something.

// How many search results are listed.
const RESULT_ROWS = 200;
// How many pieces get a ring.
const RINGS = 60;

class App {
  constructor(page) {
    showsBytes = page.about.bytes;
    this.model = new Model(page);
    this.search = new Search(this.model);
    this.canvas = new Canvas(byId("picture"), byId("overlay"));
    this.disk = this.model.disks[0];
    this.scheme = "directory";
    this.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    this.classed = new Map();
    this.chosen = null;
    this.pieces = [];
    this.piece = 0;
    this.lit = null;
    this.hover = null;
    this.pending = { picture: false, overlay: false };
    this.canvas.view.reset(this.disk.size);
    this.tables = new Tables(this.model, page.columns, {
      choose: (object) => this.choose(object),
      show: (disk, start, end) => this.show(disk, start, end),
    });
    this.prepareHeader();
    this.prepareSearch();
    prepareInput(this);
    this.playback = this.model.about.trace ? new Playback(this.model, page.columns, () => this.redraw("overlay")) : null;
    this.setTheme(this.theme);
    new ResizeObserver(() => this.canvas.fit() && this.drawNow()).observe(byId("frame"));
  }

  prepareHeader() {
    const { about, disks } = this.model;
    byId("title").textContent = about.title;
    document.title = `${about.title} – block map`;
    const files = this.model.kind.reduce((count, kind, i) => count + (kind === 0 && !this.model.same[i] ? 1 : 0), 0);
    const size = disks.reduce((sum, disk) => sum + disk.size, 0);
    byId("subtitle").textContent = `${plural(files, "file")} on ${plural(disks.length, "disk")}, ${sizeText(size)}`;
    byId("disk-choice").hidden = disks.length < 2;
    for (const disk of disks) {
      byId("disk").append(element("option", { value: disk.number }, `${disk.number}, ${sizeText(disk.size)}`));
    }
    byId("disk").addEventListener("change", () => this.setDisk(disks.find((disk) => disk.number === Number(byId("disk").value))));
    for (const [value, { name }] of Object.entries(SCHEMES)) {
      const disabled = value === "age" && !this.model.knowsTimes;
      byId("scheme").append(element("option", { value, disabled }, disabled ? `${name} (not in this map)` : name));
    }
    byId("scheme").addEventListener("change", () => this.setScheme(byId("scheme").value));
    byId("theme").addEventListener("click", () => this.setTheme(this.theme === "dark" ? "light" : "dark"));
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", () => this.setTheme(system.matches ? "dark" : "light"));
    byId("help-button").addEventListener("click", () => {
      byId("help").hidden = !byId("help").hidden;
      byId("help-button").setAttribute("aria-expanded", !byId("help").hidden);
    });
  }

  prepareSearch() {
    let timer = 0;
    const query = byId("query");
    query.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.find(query.value.trim()), 120);
    });
    byId("search").addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(timer);
      this.find(query.value.trim());
      byId("results").querySelector("button")?.click();
    });
  }

  setTheme(theme) {
    this.theme = theme;
    document.documentElement.classList.toggle("dark", theme === "dark");
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-pressed", theme === "dark");
    this.recolour();
  }

  setScheme(scheme) {
    this.scheme = scheme;
    this.recolour();
  }

  setDisk(disk) {
    if (disk === this.disk) return;
    this.disk = disk;
    byId("disk").value = disk.number;
    this.hover = null;
    this.canvas.view.reset(disk.size);
    this.recolour();
  }

  // Names of the disk's volumes that hold no other volume.
  get labels() {
    this.labelsOf ??= new Map();
    if (!this.labelsOf.has(this.disk)) this.labelsOf.set(this.disk, volumeLabels(this.model, this.disk));
    return this.labelsOf.get(this.disk);
  }

  // The classes of all owners by the present scheme, which are found out once.
  get classes() {
    if (!this.classed.has(this.scheme)) this.classed.set(this.scheme, classesOf(this.model, this.scheme));
    return this.classed.get(this.scheme);
  }

  recolour() {
    this.colours = ownerPixels(this.model, this.classes, this.theme, this.lit);
    this.drawLegend();
    this.redraw("picture");
  }

  drawLegend() {
    const { classes } = this;
    const bytes = new Float64Array(classes.labels.length + 3);
    const { starts, owners, size } = this.disk;
    owners.forEach((owner, i) => (bytes[classes.classes[owner] + 3] += starts[i + 1] - starts[i]));
    const colours = classColours(classes, this.theme);
    const labels = ["nothing in the map", "in no file", "not known", ...classes.labels];
    const order = [...classes.labels.keys()].map((i) => i + 3).concat(2, 1, 0).filter((i) => bytes[i] > 0);
    const item = (colour, label, ...more) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.backgroundColor = colour;
      return element("li", {}, swatch, label, ...more);
    };
    const share = (i) => element("span", { className: "bytes" }, `${sizeText(bytes[i])}, ${shareText(bytes[i], size)}`);
    const items = order.map((i) => item(colours[i], labels[i], share(i)));
    const { lit, read, written } = THEMES[this.theme];
    if (this.lit) items.push(item(lit, this.chosen === null ? "found" : "chosen"));
    if (this.playback) items.push(item(lit, "read or written just now"), item(read, "read before"), item(written, "written before"));
    const note = classes.note ? [element("p", { className: "note" }, classes.note)] : [];
    byId("legend").replaceChildren(element("ul", {}, ...items), ...note);
  }

  // Lights up what matches; an offset is shown instead.
  find(text) {
    const results = byId("results");
    results.hidden = true;
    results.replaceChildren();
    this.choose(null, { keepsSearch: true });
    if (!text) return this.light(null, "");
    const place = parseOffset(text);
    const disk = place && (place.disk === null ? this.disk : this.model.disks.find(({ number }) => number === place.disk));
    if (disk && place.offset < disk.size) {
      const interval = intervalAt(disk, place.offset);
      const [start, end] = [disk.starts[interval], disk.starts[interval + 1]];
      this.show(disk, start, end);
      this.hover = { disk, start, end, at: place.offset };
      this.light(null, placeText(this.model, disk, place.offset).replaceAll("\n", " · "));
      const [object] = this.model.members(disk.owners[interval]);
      if (object !== undefined) results.append(this.resultRow(object));
      results.hidden = object === undefined;
      return;
    }
    const { count, found, lit } = this.search.find(text, RESULT_ROWS);
    const more = count > found.length ? `, the first ${found.length} listed` : "";
    this.light(count ? lit : null, count ? `${plural(count, "match").replace("matchs", "matches")}${more}` : `Nothing has “${text}” in its path`);
    results.append(...found.map((object) => this.resultRow(object)));
    results.hidden = count === 0;
  }

  resultRow(object) {
    const device = this.model.deviceName(object);
    const size = this.model.owns(object) ? sizeText(this.model.onDisk[this.model.file(object)]) : "";
    const row = element("button", { type: "button", className: "row" }, this.model.label(object), element("span", { className: "quiet" }, `  ${KIND_NAMES[this.model.letter(object)]}, ${device}${size ? `, ${size}` : ""}`));
    row.addEventListener("click", () => {
      for (const other of byId("results").children) other.removeAttribute("aria-current");
      row.setAttribute("aria-current", "true");
      this.choose(object, { keepsSearch: true });
    });
    return row;
  }

  light(lit, text) {
    this.lit = lit;
    byId("status").textContent = text;
    this.recolour();
  }

  // Chooses an object, or nothing.
  choose(object, { keepsSearch = false } = {}) {
    if (!keepsSearch) {
      byId("results").hidden = true;
      byId("query").value = "";
    }
    this.chosen = object;
    this.piece = 0;
    this.pieces = object === null ? [] : piecesOf(this.model, object);
    if (object === null) {
      byId("details").hidden = true;
      this.light(null, "");
      return;
    }
    showDetails(this.model, object, this.pieces, {
      show: (disk, start, end) => this.show(disk, start, end),
      close: () => this.choose(null),
    });
    const isHere = this.pieces.length === 0 || this.pieces.some(({ disk }) => disk === this.disk);
    if (!isHere) this.setDisk(this.pieces[0].disk);
    const lit = this.model.owns(object) ? litFor(this.model, object) : null;
    this.light(lit, `${this.model.label(object)}: ${plural(this.pieces.length, "place")} on the disks`);
  }

  // Goes to the next piece of what is chosen, or with -1 to the one before.
  stepPiece(step) {
    if (this.pieces.length === 0) return;
    this.piece = (this.piece + step + this.pieces.length) % this.pieces.length;
    const { disk, start, end } = this.pieces[this.piece];
    this.show(disk, start, end);
    byId("status").textContent = `Place ${this.piece + 1} of ${this.pieces.length}: ${disk.number}:${offsetText(start)}, ${sizeText(end - start)}`;
  }

  show(disk, start, end) {
    this.setDisk(disk);
    this.canvas.view.showRange(disk, start, end);
    this.redraw("picture");
  }

  // Chooses what is at a point of the canvas.
  chooseAt(x, y) {
    const offset = this.canvas.view.offsetAt(this.disk, x, y);
    if (offset === null) return this.choose(null);
    const [object] = this.model.members(this.disk.owners[intervalAt(this.disk, offset)]);
    this.choose(object !== undefined && this.model.owns(object) ? object : null);
    if (this.chosen === null) byId("status").textContent = placeText(this.model, this.disk, offset).replaceAll("\n", " · ");
  }

  // Outlines what is at a point of the canvas and tells it, or nothing.
  hoverAt(x, y) {
    const offset = x === null ? null : this.canvas.view.offsetAt(this.disk, x, y);
    const tip = byId("tip");
    tip.hidden = offset === null;
    if (offset === null) {
      this.hover = null;
      return this.redraw("overlay");
    }
    const interval = intervalAt(this.disk, offset);
    this.hover = { disk: this.disk, start: this.disk.starts[interval], end: this.disk.starts[interval + 1] };
    tip.textContent = placeText(this.model, this.disk, offset);
    const { ratio, width, height } = this.canvas.view;
    const [left, top] = [x / ratio, y / ratio];
    tip.style.left = left < width / ratio / 2 ? `${left + 16}px` : "auto";
    tip.style.right = left < width / ratio / 2 ? "auto" : `${width / ratio - left + 16}px`;
    tip.style.top = top < height / ratio / 2 ? `${top + 16}px` : "auto";
    tip.style.bottom = top < height / ratio / 2 ? "auto" : `${height / ratio - top + 16}px`;
    this.redraw("overlay");
  }

  // Has the picture, and what is over it, drawn with the next frame.
  redraw(what) {
    const isAsked = this.pending.picture || this.pending.overlay;
    this.pending[what] = true;
    if (!isAsked) requestAnimationFrame(() => this.drawNow(this.pending.picture));
  }

  drawNow(withPicture = true) {
    this.pending = { picture: false, overlay: false };
    if (this.canvas.picture.width < 2) this.canvas.fit();
    if (withPicture) this.canvas.drawPicture(this.disk, this.colours, this.lit, THEMES[this.theme].page);
    const context = this.canvas.clearOverlay();
    this.playback?.draw(this.canvas, context, this.disk, this.theme);
    this.canvas.drawLabels(context, this.disk, this.labels, this.theme);
    const here = this.pieces.filter(({ disk }) => disk === this.disk).slice(0, RINGS);
    const isSmall = ({ start, end }) => this.canvas.view.side * Math.sqrt((end - start) / this.disk.size) < 12 * this.canvas.view.ratio;
    this.canvas.drawRings(context, this.disk, here.filter(isSmall).map(({ start, end }) => (start + end) / 2), THEMES[this.theme].lit);
    if (this.hover && this.hover.disk === this.disk) {
      const owner = this.disk.owners[intervalAt(this.disk, this.hover.start)];
      const isFree = !this.model.members(owner).some((object) => this.model.owns(object));
      context.globalAlpha = isFree ? 0.08 : 0.42;
      context.fillStyle = THEMES[this.theme].read;
      context.beginPath();
      this.canvas.tracePart(context, this.disk, this.hover.start, this.hover.end);
      context.fill();
      context.globalAlpha = 1;
    }
    if (document.activeElement === this.canvas.overlay && this.isByKeyboard) this.drawCross(context);
  }

  drawCross(context) {
    const { width, height, ratio } = this.canvas.view;
    for (const [line, colour] of [[4, "rgba(0,0,0,0.6)"], [2, "#ffffff"]]) {
      context.lineWidth = line * ratio;
      context.strokeStyle = colour;
      context.beginPath();
      context.moveTo(width / 2 - 12 * ratio, height / 2);
      context.lineTo(width / 2 + 12 * ratio, height / 2);
      context.moveTo(width / 2, height / 2 - 12 * ratio);
      context.lineTo(width / 2, height / 2 + 12 * ratio);
      context.stroke();
    }
  }
}
