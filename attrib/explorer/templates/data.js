// Numbers of the page: compressed JSON whose arrays are base64.

const KINDS = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
const STEPS = 255;

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function readData() {
  const packed = bytesOf(document.getElementById("data").textContent.trim());
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// An array with a shape: at(i, j, k) is one number, row(i, j) the numbers of the last axis.
class Numbers {
  constructor(stored) {
    this.shape = stored.shape;
    const bytes = bytesOf(stored.data);
    this.flat = new KINDS[stored.type](bytes.buffer);
  }
  offset(index) {
    return index.reduce((sum, i, axis) => sum * this.shape[axis] + i, 0);
  }
  at(...index) {
    return this.flat[this.offset(index)];
  }
  row(...index) {
    const width = this.shape[this.shape.length - 1];
    const start = this.offset(index) * width;
    return Array.from(this.flat.subarray(start, start + width));
  }
}

// Maps in steps of the square root of a row's share of its largest value.
class Maps {
  constructor(stored) {
    this.steps = new Numbers(stored.steps);
    this.largest = new Numbers(stored.largest);
    this.width = this.steps.shape[this.steps.shape.length - 1];
    this.count = this.steps.shape[0];
  }
  row(...index) {
    const largest = this.largest.at(...index);
    return this.steps.row(...index).map((step) => largest * (step / STEPS) ** 2);
  }
}

function decodeSide(side) {
  const numbers = ["paper", "shares", "constants", "lens", "lensP", "keyP", "sums", "visualLens",
    "near", "cosine"];
  const maps = ["attentionWords", "attentionVisual", "heat", "visualP"];
  const decoded = { ...side };
  for (const name of numbers) decoded[name] = new Numbers(side[name]);
  for (const name of maps) decoded[name] = new Maps(side[name]);
  decoded.visual = decoded.attentionVisual.width;
  decoded.text = (token) => side.vocabulary[token];
  decoded.word = (index) => side.vocabulary[side.words[index]];
  return decoded;
}

// A number as a reader wants it: three digits, no exponent in between.
function shown(value, digits = 3) {
  if (!Number.isFinite(value)) return "none";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 0.0005 || size >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
}

function percent(share) {
  if (!Number.isFinite(share)) return "none";
  if (share >= 0.9995) return "100\u00a0%";
  if (share < 0.00005) return share > 0 ? "< 0.01\u00a0%" : "0\u00a0%";
  const digits = [0.01, 0.1].filter((bound) => share < bound).length;
  return `${(100 * share).toFixed(digits)}\u00a0%`;
}

// Per cent without the sign, for cells of a table whose head has it; "" below half a per mille.
function perCent(share) {
  return share < 0.0005 ? "" : share >= 0.9995 ? "100" : (100 * share).toFixed(share < 0.1 ? 1 : 0);
}

function signed(value) {
  return Number.isFinite(value) ? (value > 0 ? "+" : "") + shown(value) : "none";
}

// A table as CSV; cells that a spreadsheet would evaluate become text.
function csvOf(columns, rows) {
  const cell = (value) => {
    let text = String(value);
    if (typeof value === "string" && /^[=+\-@\t]/.test(text) && Number.isNaN(Number(text))) text = `'${text}`;
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
