// Numbers as people read them, and elements made of text.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

// Whether sizes are numbers of bytes and offsets decimal.
let showsBytes = false;

// A number of bytes: three digits and a unit of 1024.
function sizeText(bytes) {
  if (showsBytes) return `${bytes} B`;
  let unit = 0;
  while (bytes >= 1024 && unit < UNITS.length - 1) {
    bytes /= 1024;
    unit++;
  }
  const digits = unit > 0 && bytes < 10 ? 1 : 0;
  return `${Number(bytes.toFixed(digits))} ${UNITS[unit]}`;
}

// The same, with the exact number after it.
function exactSize(bytes) {
  return showsBytes || bytes < 1024 ? sizeText(bytes) : `${sizeText(bytes)} (${countText(bytes)} B)`;
}

function countText(count) {
  return count.toLocaleString("en");
}

function plural(count, word) {
  return `${countText(count)} ${word}${count === 1 ? "" : "s"}`;
}

function offsetText(offset) {
  return showsBytes ? String(offset) : `0x${offset.toString(16)}`;
}

function shareText(part, whole) {
  const percent = whole > 0 ? (100 * part) / whole : 0;
  return percent > 0 && percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
}

// Seconds since 1970 as date and time in UTC.
function timeText(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? `${seconds} s` : `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

// An offset as it may be typed: decimal or 0x, K to E after it, and the number of the disk and a colon before it.
function parseOffset(text) {
  const found = /^(?:(\d{1,5}):)?(0x[0-9a-f]{1,14}|\d{1,16})([kmgtpe])?(?:ib)?$/i.exec(text.trim());
  if (!found) return null;
  const power = found[3] ? "kmgtpe".indexOf(found[3].toLowerCase()) + 1 : 0;
  return { disk: found[1] ? Number(found[1]) : null, offset: Number(found[2]) * 1024 ** power };
}

// An element with properties and children. Text comes in as text, whatever is in it.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}
