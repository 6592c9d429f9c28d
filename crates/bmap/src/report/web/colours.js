// Which colour each owner has, and what the colours mean.
//
// Classes without order have the colours of Okabe and Ito, which people with any colour vision tell apart. Classes with an
// order go from pale to dark, or on a dark page from dark to bright, so that lightness alone tells them.

const CLASSES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#8a8f98"];
const THEMES = {
  light: {
    ordered: ["#bfe3c0", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#0c2c84"],
    unknown: "#a9a29a", free: "#dfe3e8", nobody: "#f3f4f6", page: "#ffffff", label: "#3c4650", lit: "#c4005e",
    read: "#14171a", written: "#8f2d00",
  },
  dark: {
    ordered: ["#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#fde725"],
    unknown: "#77716a", free: "#2c323a", nobody: "#1b1f24", page: "#14171a", label: "#c3ccd6", lit: "#fff04d",
    read: "#ffffff", written: "#ff9d5c",
  },
};

const DAY = 86400;
const AGES = [[1, "a day"], [7, "a week"], [31, "a month"], [366, "a year"], [5 * 366, "five years"], [Infinity, "more"]];
const PIECES = [[1, "1 piece"], [2, "2 pieces"], [4, "3 to 4"], [16, "5 to 16"], [64, "17 to 64"], [Infinity, "65 or more"]];
const TYPES = [
  ["programs and libraries", /\.(so|so\.[\d.]+|ko|ko\.\w+|exe|dll|sys|a|o|bin|efi|mod|class|jar|pyc|pyo|elc|hmac)$|^vmlinuz|^lib.*\.so/],
  ["text and settings", /\.(txt|md|rst|conf|cfg|ini|html?|css|xml|json|ya?ml|py|pl|pm|c|h|cc|cpp|rs|js|go|rb|sh|el|tex|po|mo|service|desktop|rules|te|if|list|\d)$|^[A-Z]+$/],
  ["images, sound, fonts", /\.(png|jpe?g|gif|svgz?|ico|xpm|bmp|webp|ogg|oga|mp3|wav|flac|mp4|mkv|ttf|otf|pf[ab]|pcf(\.gz)?|woff2?|pdf|ps)$/],
  ["archives and images", /\.(gz|bz2|xz|zst|zip|tar|tgz|rpm|deb|img|iso|qcow2|vmdk|cab|squashfs|7z)$|^initr(d|amfs)/],
  ["databases and logs", /\.(db|sqlite3?|log|journal|idx|mdb|edb|cache|dat)$|^(Packages|locale-archive|messages|syslog|wtmp|lastlog)$/],
];
const PROGRAM_DIRECTORY = /\/s?bin\/$|\/libexec\//;
const TEXT_DIRECTORY = /^\/etc\/|\/man\d\/$|\/doc\//;

// A way to colour: the classes, and the class of each object. Free space and nobody's have colours of their own.
const SCHEMES = {
  directory: { name: "Directory", make: byDirectory },
  type: { name: "Type", make: byType },
  age: { name: "Age", make: byAge },
  fragmentation: { name: "Fragmentation", make: byFragmentation },
  device: { name: "Device", make: byDevice },
};

function byDirectory(model) {
  const parents = model.directoryParent;
  const own = new Float64Array(parents.length);
  for (let i = 0; i < model.names.length; i++) if (model.owns(i)) own[model.directory[i]] += model.onDisk[i];
  const isChosen = new Uint8Array(parents.length);
  let chosen = [];
  const choose = (directory) => {
    isChosen[directory] = 1;
    chosen.push(directory);
  };
  // What is below each directory, but for what is below one that was chosen. Parents come before children.
  const sums = () => {
    const sum = own.slice();
    for (let i = sum.length - 1; i > 0; i--) if (!isChosen[i]) sum[parents[i]] += sum[i];
    return sum;
  };
  const chosenAbove = () => {
    const above = new Uint32Array(parents.length);
    for (let i = 1; i < above.length; i++) above[i] = isChosen[i] ? i : above[parents[i]];
    return above;
  };
  let sum = sums();
  const roots = [...parents.keys()].filter((i) => i > 0 && parents[i] === 0);
  roots.sort((a, b) => sum[b] - sum[a]).slice(0, 4).forEach(choose);
  // Each step divides a class as evenly as a directory can.
  while (chosen.length < 7) {
    sum = sums();
    const above = chosenAbove();
    let [best, gain] = [0, 0];
    for (let i = 1; i < sum.length; i++) {
      const rest = sum[above[i]] - sum[i];
      if (!isChosen[i] && above[i] && Math.min(sum[i], rest) > gain) [best, gain] = [i, Math.min(sum[i], rest)];
    }
    if (!best) break;
    choose(best);
  }
  const devices = new Set(chosen.map((directory) => model.directoryDevice[directory]));
  const name = (directory) => {
    const device = devices.size > 1 ? `${model.deviceNames[model.directoryDevice[directory]]} ` : "";
    return device + (model.directoryPath[directory].replace(/(.)\/$/, "$1"));
  };
  chosen = chosen.sort((a, b) => a - b);
  const above = chosenAbove();
  const hasPart = (directory) => chosen.some((other) => other !== directory && above[parents[other]] === directory);
  const labels = chosen.map((directory) => name(directory) + (hasPart(directory) ? " – the rest" : ""));
  const place = new Map(chosen.map((directory, i) => [directory, i]));
  const classOf = (object) => place.get(above[model.directory[object]]) ?? chosen.length;
  return { labels: [...labels, "elsewhere"], classOf, isOrdered: false };
}

function byType(model) {
  const labels = [...TYPES.map(([label]) => label), "other files", "directories", "metadata"];
  const classOf = (object) => {
    const letter = model.letter(object);
    if (letter === "d") return TYPES.length + 1;
    if (letter === "m") return TYPES.length + 2;
    const type = TYPES.findIndex(([, pattern]) => pattern.test(model.names[object]));
    if (type >= 0) return type;
    const directory = model.directoryPath[model.directory[object]];
    if (PROGRAM_DIRECTORY.test(directory)) return 0;
    return TEXT_DIRECTORY.test(directory) ? 1 : TYPES.length;
  };
  return { labels, classOf, isOrdered: false };
}

function byAge(model) {
  let newest = -Infinity;
  for (const modified of model.modified) if (modified) newest = Math.max(newest, unzigzag(modified - 1));
  const labels = AGES.map(([, label]) => (label === "more" ? "older" : `within ${label}`));
  const classOf = (object) => {
    if (!model.modified[object]) return -1;
    const days = (newest - unzigzag(model.modified[object] - 1)) / DAY;
    return AGES.findIndex(([limit]) => days <= limit);
  };
  const note = newest > -Infinity ? `Last change of the data, before the newest: ${timeText(newest)}` : "";
  // The newest stand out.
  return { labels, classOf, isOrdered: true, isReversed: true, note };
}

function byFragmentation(model) {
  const classOf = (object) => PIECES.findIndex(([limit]) => model.pieces[object] <= limit);
  return { labels: PIECES.map(([, label]) => label), classOf, isOrdered: true };
}

function byDevice(model) {
  const bytes = new Float64Array(model.deviceNames.length);
  for (let i = 0; i < model.names.length; i++) if (model.owns(i)) bytes[model.device[i]] += model.onDisk[i];
  const largest = [...bytes.keys()].filter((i) => bytes[i] > 0).sort((a, b) => bytes[b] - bytes[a]).slice(0, 7);
  const shown = largest.sort((a, b) => a - b);
  const kinds = new Map(model.about.filesystems.map(({ device, kind }) => [device, ` (${kind})`]));
  const labels = shown.map((i) => model.deviceNames[i] + (kinds.get(model.deviceNames[i]) ?? ""));
  const place = new Map(shown.map((device, i) => [device, i]));
  return { labels: [...labels, "other devices"], classOf: (object) => place.get(model.device[object]) ?? shown.length, isOrdered: false };
}

// The class of each owner: -1 unknown, -2 free, -3 nobody's; else a place in the labels.
function classesOf(model, scheme) {
  const { classOf, ...rest } = SCHEMES[scheme].make(model);
  const count = model.names.length;
  const classes = new Int8Array(model.ownerCount);
  classes[0] = -3;
  for (let i = 0; i < count; i++) {
    if (!model.owns(i)) classes[i + 1] = -2;
    else if (!model.same[i]) classes[i + 1] = classOf(i);
  }
  for (let group = 0; group + 1 < model.groupStart.length; group++) {
    classes[1 + count + group] = classes[1 + model.groupMembers[model.groupStart[group]]];
  }
  return { classes, ...rest };
}

// Colours of the classes, from -3 on.
function classColours({ labels, isOrdered, isReversed }, theme) {
  const { ordered, unknown, free, nobody } = THEMES[theme];
  let colours = CLASSES;
  if (isOrdered) colours = isReversed ? [...ordered].reverse() : ordered;
  return [nobody, free, unknown, ...labels.map((_, i) => colours[Math.min(i, colours.length - 1)])];
}

function rgb(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

// Red, green and blue as a pixel of a canvas has them on a little-endian machine.
function pixel([red, green, blue]) {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

function mix(a, b, part) {
  return a.map((value, i) => Math.round(value + (b[i] - value) * part));
}

// The pixel of each owner. Neighbours of one class differ a little, so that files can be told apart. Where `lit` marks
// owners, these have one colour that stands out, and all others fade.
function ownerPixels(model, classed, theme, lit) {
  const colours = classColours(classed, theme).map(rgb);
  const page = rgb(THEMES[theme].page);
  const shades = [-0.13, -0.045, 0.045, 0.13];
  const shade = (colour, by) => mix(colour, by < 0 ? [0, 0, 0] : [255, 255, 255], Math.abs(by));
  const faded = (colour) => (lit ? mix(colour, page, 0.78) : colour);
  const table = colours.map((colour) => shades.map((by) => pixel(faded(shade(colour, by)))));
  const plain = pixel(faded(colours[0]));
  // Partitions that follow one another are told apart by a shade, too.
  const free = [0, -0.07].map((by) => pixel(faded(shade(colours[1], by))));
  const litPixel = pixel(rgb(THEMES[theme].lit));
  const pixels = new Uint32Array(model.ownerCount);
  const { classes } = classed;
  for (let owner = 0; owner < pixels.length; owner++) {
    const known = classes[owner] + 3;
    if (lit && lit[owner]) pixels[owner] = litPixel;
    else if (known === 1) pixels[owner] = free[owner & 1];
    else pixels[owner] = known === 0 ? plain : table[known][Math.imul(owner, 0x9e3779b1) >>> 30];
  }
  return pixels;
}
