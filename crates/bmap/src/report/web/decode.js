// What the page holds: its JSON and its columns. `columns.rs` is the other end.

async function readPage() {
  const about = JSON.parse(document.getElementById("about").textContent);
  const zlib = fromBase64(document.getElementById("columns").textContent);
  return { about, columns: new Columns(await inflate(zlib), about.columns) };
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Columns {
  constructor(bytes, index) {
    this.bytes = bytes;
    this.index = index;
  }

  has(name) {
    return name in this.index;
  }

  // How many numbers or lines a column has; none if it is left out.
  count(name) {
    return this.has(name) ? this.index[name].count : 0;
  }

  // The numbers of a column. One that is left out is `count` zeros.
  numbers(name, Type = Float64Array, count = this.count(name)) {
    const numbers = new Type(count);
    if (!this.has(name)) return numbers;
    const { bytes } = this;
    let at = this.index[name].start;
    for (let i = 0; i < count; i++) {
      // Bit operations end at 32 bits; a number may have 53.
      let byte = bytes[at++];
      let number = byte & 0x7f;
      for (let scale = 128; byte >= 0x80; scale *= 128) {
        byte = bytes[at++];
        number += (byte & 0x7f) * scale;
      }
      numbers[i] = number;
    }
    return numbers;
  }

  // The lines of a column of texts.
  texts(name) {
    const { start, end } = this.index[name];
    const lines = new TextDecoder().decode(this.bytes.subarray(start, end)).split("\n");
    lines.pop();
    return lines;
  }
}

// 0, 1, 2, 3, 4, … as 0, -1, 1, -2, 2, …
function unzigzag(number) {
  return number % 2 === 0 ? number / 2 : -(number + 1) / 2;
}
