// The tables: what is largest, most fragmented, shared and free, and what the map says of itself.

// How many of the free ranges are listed.
const FREE_ROWS = 200;

const TABLES = {
  largest: {
    name: "Largest",
    caption: "Files that have most bytes on the disks",
    columns: ["on disk", "pieces", "file"],
    row: (model, object) => [sizeText(model.onDisk[object]), countText(model.pieces[object])],
  },
  fragmented: {
    name: "Fragmented",
    caption: "Files in most pieces",
    columns: ["pieces", "on disk", "file"],
    row: (model, object) => [countText(model.pieces[object]), sizeText(model.onDisk[object])],
  },
  shared: {
    name: "Shared",
    caption: "Files with most bytes that another file has, too. Names of one file (hard links) share nothing.",
    columns: ["shared", "on disk", "file"],
    row: (model, object) => [sizeText(model.shared[object]), sizeText(model.onDisk[object])],
  },
};

class Tables {
  // `choose` is called with the object, `show` with a disk and a range of it, that a row is about.
  constructor(model, columns, { choose, show }) {
    Object.assign(this, { model, choose, show });
    this.lists = Object.fromEntries(
      Object.keys(TABLES).map((name) => [name, columns.numbers(`table.${name}`, Uint32Array)]),
    );
    this.tabs = byId("tabs");
    for (const [name, title] of [...Object.entries(TABLES).map(([n, t]) => [n, t.name]), ["free", "Free"], ["about", "About"]]) {
      const tab = element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "table" }, title);
      tab.addEventListener("click", () => this.open(name));
      this.tabs.append(tab);
    }
    this.tabs.addEventListener("keydown", (event) => this.moveTab(event));
    this.open("largest");
  }

  moveTab(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const tabs = [...this.tabs.children];
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
    event.preventDefault();
  }

  open(name) {
    this.opened = name;
    for (const tab of this.tabs.children) {
      const isOpen = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", isOpen);
      tab.tabIndex = isOpen ? 0 : -1;
    }
    byId("table").setAttribute("aria-labelledby", `tab-${name}`);
    const content = name === "free" ? this.freeTable() : name === "about" ? this.aboutText() : this.fileTable(name);
    byId("table").replaceChildren(content);
  }

  fileTable(name) {
    const { caption, columns, row } = TABLES[name];
    const objects = [...this.lists[name]];
    if (objects.length === 0) return element("p", {}, `No file is ${name}.`);
    return table(caption, columns, objects, (object) => [
      ...row(this.model, object),
      element("button", { type: "button", onclick: () => this.choose(object) }, this.model.label(object)),
    ]);
  }

  // The largest ranges that no file, directory or metadata owns.
  freeTable() {
    this.free ??= largestFree(this.model);
    if (this.free.length === 0) return element("p", {}, "No range is free.");
    const caption =
      "Largest ranges that are in no file, directory or metadata of the map: free space, and what the map does not know";
    return table(caption, ["size", "offset", "on"], this.free, ({ disk, start, end, owner }) => [
      sizeText(end - start),
      element("button", { type: "button", onclick: () => this.show(disk, start, end) }, `${disk.number}:${offsetText(start)}`),
      owner === 0 ? "nothing that the map knows" : this.model.label(owner - 1),
    ]);
  }

  aboutText() {
    const { about } = this.model;
    const list = (texts) => element("ul", { className: "warnings" }, ...texts.map((text) => element("li", {}, text)));
    const more = about.more_warnings > 0 ? [`and ${plural(about.more_warnings, "more warning")}`] : [];
    return element(
      "div",
      {},
      element("p", {}, `Map by ${about.generator}`),
      list(this.model.disks.map((disk) => `disk ${disk.number}, ${exactSize(disk.size)}${disk.images.map((image) => `, ${image}`).join("")}`)),
      list(about.filesystems.map(filesystemText)),
      element("p", {}, about.warnings.length ? "Warnings of the map:" : "The map has no warnings."),
      list([...about.warnings, ...more]),
    );
  }
}

function filesystemText({ device, kind, block_size, explained }) {
  const blocks = block_size ? `, blocks of ${sizeText(block_size)}` : "";
  const balance = explained === null ? "" : `, ${(explained / 100).toFixed(2)} % of the bytes in use accounted for`;
  return `${device}: ${kind}${blocks}${balance}`;
}

// A table with a row of cells for each item; the last column is text, those before it are numbers.
function table(caption, columns, items, cells) {
  const isNumber = (i) => (i < columns.length - 1 ? "number" : "");
  const head = element("tr", {}, ...columns.map((name, i) => element("th", { scope: "col", className: isNumber(i) }, name)));
  const row = (item) => element("tr", {}, ...cells(item).map((cell, i) => element("td", { className: isNumber(i) }, cell)));
  return element(
    "table",
    {},
    element("caption", {}, caption),
    element("thead", {}, head),
    element("tbody", {}, ...items.map(row)),
  );
}

function largestFree(model) {
  const free = [];
  // Only now and then is there so much that it pays to sort.
  const trim = () => free.sort((a, b) => b.end - b.start - (a.end - a.start)).splice(FREE_ROWS);
  for (const disk of model.disks) {
    disk.owners.forEach((owner, i) => {
      if (owner > model.names.length || (owner > 0 && model.owns(owner - 1))) return;
      free.push({ disk, start: disk.starts[i], end: disk.starts[i + 1], owner });
      if (free.length > 50 * FREE_ROWS) trim();
    });
  }
  trim();
  return free;
}
