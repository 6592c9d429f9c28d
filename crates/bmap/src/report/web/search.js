// Search for a path: every object whose path has the text in it, whatever the case of the letters.

class Search {
  constructor(model) {
    this.model = model;
    this.names = model.names.join("\n").toLowerCase().split("\n");
    this.directories = model.directoryPath.map((path) => path.toLowerCase());
  }

  // Marks the owners that match, and returns how many objects do and the numbers of the first `most` of them.
  find(text, most) {
    const { model } = this;
    const query = text.toLowerCase();
    const slash = query.lastIndexOf("/") + 1;
    const [head, tail] = [query.slice(0, slash), query.slice(slash)];
    // A path matches in its directory, in its last part, or from one to the other.
    const inDirectory = Uint8Array.from(this.directories, (path) => (path.includes(query) ? 1 : 0));
    const acrossDirectory = Uint8Array.from(this.directories, (path) => (slash > 0 && path.endsWith(head) ? 1 : 0));
    const lit = new Uint8Array(model.ownerCount);
    const found = [];
    let count = 0;
    for (let i = 0; i < this.names.length; i++) {
      const directory = model.directory[i];
      const matches =
        inDirectory[directory] ||
        (slash === 0 && this.names[i].includes(query)) ||
        (acrossDirectory[directory] && this.names[i].startsWith(tail)) ||
        (!model.owns(i) && model.deviceName(i).toLowerCase().includes(query));
      if (!matches) continue;
      count++;
      lit[model.file(i) + 1] = 1;
      if (found.length < most) found.push(i);
    }
    lightGroups(model, lit);
    return { count, found, lit };
  }
}

// The owners that are this object: it, and the groups that it is in.
function litFor(model, object) {
  const lit = new Uint8Array(model.ownerCount);
  lit[model.file(object) + 1] = 1;
  lightGroups(model, lit);
  return lit;
}

function lightGroups(model, lit) {
  const first = 1 + model.names.length;
  for (let owner = first; owner < model.ownerCount; owner++) {
    lit[owner] = model.members(owner).some((member) => lit[member + 1]) ? 1 : 0;
  }
}
