// Requests of a log, played over the map: what was just read or written shines, what was before stays marked.

// For how long a request shines, in seconds of the one who watches.
const SHINE = 0.6;
// How many of the latest requests, and of the latest operations, are told by name.
const TOLD = 4;

// For how many milliseconds marks are added before a picture is shown.
const BUDGET = 25;

class Playback {
  // `changed` is called when the time is another.
  constructor(model, columns, changed) {
    this.model = model;
    this.changed = changed;
    const { is_timed, is_cut, operations } = model.about.trace;
    // What the guest did to its files, in the order of its spans.
    this.operations = operations;
    [this.isTimed, this.isCut] = [is_timed, is_cut];
    const count = columns.count("trace.length");
    const column = (name, Type) => columns.numbers(`trace.${name}`, Type, count);
    this.times = column("time");
    for (let i = 1; i < count; i++) this.times[i] += this.times[i - 1];
    for (let i = 0; i < count; i++) this.times[i] /= 1e6;
    this.isWrite = column("write", Uint8Array);
    this.disks = column("disk", Uint16Array);
    this.offsets = column("offset");
    this.lengths = column("length");
    const end = operations.reduce((end, { to }) => Math.max(end, to), this.times[count - 1]);
    this.length = Math.max(end, is_timed ? 1e-3 : 1);
    this.time = 0;
    this.isPlaying = false;
    this.trail = { canvas: document.createElement("canvas"), done: 0, key: "" };
    this.prepareControls();
  }

  prepareControls() {
    byId("player").hidden = false;
    const whole = [["20", "all in 20 s"], ["60", "all in 1 min"], ["5", "all in 5 s"]];
    const real = this.isTimed ? [["x1", "as it was"], ["x10", "10 times as fast"]] : [];
    for (const [value, text] of [...whole, ...real]) byId("speed").append(element("option", { value }, text));
    byId("play").addEventListener("click", () => this.play(!this.isPlaying));
    byId("time").addEventListener("input", () => this.seek((byId("time").value / 1000) * this.length));
    this.seek(0);
  }

  // Seconds of the log in each second of the one who watches.
  get speed() {
    const { value } = byId("speed");
    return value.startsWith("x") ? Number(value.slice(1)) : this.length / Number(value);
  }

  play(on) {
    this.isPlaying = on;
    byId("play").textContent = on ? "Pause" : "Play";
    byId("play").setAttribute("aria-pressed", on);
    if (!on) return;
    if (this.time >= this.length) this.seek(0);
    let last = performance.now();
    const step = (now) => {
      if (!this.isPlaying) return;
      this.seek(this.time + ((now - last) / 1000) * this.speed);
      last = now;
      if (this.time >= this.length) this.play(false);
      else requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  seek(time) {
    this.time = Math.min(this.length, Math.max(0, time));
    byId("time").value = Math.round((1000 * this.time) / this.length);
    const done = this.doneAt(this.time);
    const at = this.isTimed ? `${this.time.toFixed(2)} s of ${this.length.toFixed(2)} s` : "";
    byId("clock").textContent = `${at}${at ? ", " : ""}${countText(done)} of ${plural(this.times.length, "request")}${this.isCut ? " (the first of the log)" : ""}`;
    byId("time").setAttribute("aria-valuetext", byId("clock").textContent);
    this.tellRequests(done);
    this.tellOperations();
    this.changed();
  }

  // How many requests began up to a time.
  doneAt(time) {
    return lowerBound(this.times, time + 1e-9, 0, this.times.length);
  }

  tellRequests(done) {
    const lines = [];
    for (let i = done - 1; i >= Math.max(0, done - TOLD); i--) {
      const disk = this.model.disks.find(({ number }) => number === this.disks[i]);
      const owner = disk.owners[intervalAt(disk, this.offsets[i])];
      const [object] = this.model.members(owner);
      const name = object === undefined ? "nothing that the map knows" : this.model.label(object);
      const where = object !== undefined && !this.model.owns(object) ? ", in no file" : "";
      lines.push(`${this.isWrite[i] ? "write" : "read"} ${sizeText(this.lengths[i])} at ${disk.number}:${offsetText(this.offsets[i])} ${name}${where}`);
    }
    byId("requests").replaceChildren(...lines.map((line) => element("li", {}, line)));
  }

  // The latest operations: those whose span has begun.
  tellOperations() {
    const begun = this.operations.findLastIndex(({ from }) => from <= this.time + 1e-9) + 1;
    const latest = this.operations.slice(Math.max(0, begun - TOLD), begun).reverse();
    const line = ({ from, text }) => element("li", {}, `${from.toFixed(2)} s ${text}`);
    byId("operations").hidden = this.operations.length === 0;
    byId("operations").replaceChildren(...latest.map(line));
  }

  // Draws over the map of a disk. The trail is kept, and only what is new is added to it.
  draw(canvas, context, disk, theme) {
    const { trail } = this;
    const { width, height } = canvas.overlay;
    const { x, y, zoom } = canvas.view;
    const key = [width, height, x, y, zoom, disk.number, theme].join();
    const done = this.doneAt(this.time);
    const ink = trail.canvas.getContext("2d");
    if (key !== trail.key || done < trail.done) {
      [trail.canvas.width, trail.canvas.height] = [width, height];
      [trail.key, trail.done] = [key, 0];
    }
    const { read, written, lit, page } = THEMES[theme];
    // Of a long log only a part is added at a time: the rest comes with the next pictures.
    const deadline = performance.now() + BUDGET;
    while (trail.done < done && performance.now() < deadline) {
      const next = Math.min(done, trail.done + 1000);
      this.cover(canvas, ink, disk, trail.done, next, [read, written]);
      trail.done = next;
    }
    if (trail.done < done) this.changed();

    // The map steps back, so that what was read stands out.
    context.fillStyle = page;
    context.globalAlpha = 0.55;
    context.fillRect(0, 0, width, height);
    context.globalAlpha = 0.75;
    context.drawImage(trail.canvas, 0, 0);
    context.globalAlpha = 1;
    const shining = this.doneAt(this.time - SHINE * this.speed);
    const latest = Math.max(shining, done - 200);
    this.cover(canvas, context, disk, latest, done, [lit, lit]);
    const offsets = [];
    for (let i = Math.max(latest, done - 12); i < done; i++) {
      if (this.disks[i] === disk.number) offsets.push(this.offsets[i]);
    }
    canvas.drawRings(context, disk, offsets, lit);
  }

  // Fills the places of requests, reads and writes in a colour each.
  cover(canvas, context, disk, from, to, colours) {
    for (const write of [0, 1]) {
      context.fillStyle = colours[write];
      for (let i = from; i < to; i++) {
        if (this.disks[i] !== disk.number || this.isWrite[i] !== write) continue;
        canvas.fillPart(context, disk, this.offsets[i], this.offsets[i] + this.lengths[i]);
      }
    }
  }
}
