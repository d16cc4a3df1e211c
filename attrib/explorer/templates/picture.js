// The picture under its visual tokens: one layer, or all layers as small multiples.

function place(node, frameBox, box) {
  const width = frameBox[2] - frameBox[0];
  const height = frameBox[3] - frameBox[1];
  Object.assign(node.style, {
    left: `${(100 * (box[0] - frameBox[0])) / width}%`, top: `${(100 * (box[1] - frameBox[1])) / height}%`,
    width: `${(100 * (box[2] - box[0])) / width}%`, height: `${(100 * (box[3] - box[1])) / height}%`,
  });
}

// The lowest and the highest of some values.
function rangeOf(values) {
  const known = values.filter(Number.isFinite);
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 0];
}

// Where a value is between two others, from 0 to 1.
function shareOf(value, [low, high]) {
  return high > low && Number.isFinite(value) ? Math.min(Math.max((value - low) / (high - low), 0), 1) : 0;
}

// One pixel per cell, coloured by its place in the range; low cells stay clear.
function drawMap(canvas, values, rows, cols, range) {
  canvas.width = cols;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(cols, rows);
  values.forEach((value, i) => {
    const share = shareOf(value, range);
    pixels.data.set([...rgb(colour(share)), 255 * opacity(share)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

// A picture in grey under a canvas; `cells` are its visual tokens, in reading order of the grid.
function pictureFrame(picture, alt) {
  const [left, top, right, bottom] = picture.frame;
  const node = el("div", { class: "frame", style: { aspectRatio: `${right - left} / ${bottom - top}` } });
  const image = el("img", { src: picture.source, alt, class: picture.small ? "pixels" : "" });
  place(image, picture.frame, [0, 0, ...picture.size]);
  const canvas = el("canvas", {});
  place(canvas, picture.frame, picture.box ?? [0, 0, ...picture.size]);
  node.append(image, canvas);
  return { node, image, canvas };
}

class PictureView {
  constructor(picture, number, side, choose) {
    Object.assign(this, { picture, side, choose });
    const name = side.pictures.length > 1 ? `Picture ${number + 1}` : "Picture";
    const { node, image, canvas } = pictureFrame(picture, name);
    Object.assign(this, { node, image, canvas, name });
    [this.start, this.stop] = picture.box ? [picture.first, picture.first + picture.rows * picture.cols] : picture.tokens;
    this.rows = picture.box ? picture.rows : 1;
    this.cols = picture.box ? picture.cols : this.stop - this.start;
    if (!picture.box) node.classList.add("strip");
    this.cursor = el("div", { class: "cursor", hidden: true });
    node.append(this.cursor);
    node.tabIndex = 0;
    node.setAttribute("role", "application");
    node.setAttribute("aria-label", `${name}, ${this.rows} by ${this.cols} visual tokens: move with the arrow keys`);
    node.addEventListener("pointermove", (event) => this.point(event));
    node.addEventListener("click", (event) => this.point(event));
    node.addEventListener("keydown", (event) => this.key(event));
  }
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const col = Math.floor(((event.clientX - box.left) / box.width) * this.cols);
    const line = Math.floor(((event.clientY - box.top) / box.height) * this.rows);
    if (col < 0 || line < 0 || col >= this.cols || line >= this.rows) return;
    this.choose(this.start + line * this.cols + col);
  }
  key(event) {
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const inside = this.cell >= this.start && this.cell < this.stop;
    const cell = inside ? this.cell - this.start : 0;
    const [down, right] = inside ? moves[event.key] : [0, 0];
    const line = Math.min(Math.max(Math.floor(cell / this.cols) + down, 0), this.rows - 1);
    const col = Math.min(Math.max((cell % this.cols) + right, 0), this.cols - 1);
    this.choose(this.start + line * this.cols + col);
  }
  show(values, range, cell, plain) {
    this.cell = cell;
    this.image.classList.toggle("under", !plain);
    this.canvas.style.visibility = plain ? "hidden" : "visible";  // it keeps its place for the pointer
    if (!plain) drawMap(this.canvas, values.slice(this.start, this.stop), this.rows, this.cols, range);
    const inside = cell >= this.start && cell < this.stop;
    this.cursor.hidden = !inside;
    if (!inside) return;
    const [left, top, right, bottom] = this.picture.box ?? [0, 0, ...this.picture.size];
    const [w, h] = [(right - left) / this.cols, (bottom - top) / this.rows];
    const [line, col] = [Math.floor((cell - this.start) / this.cols), (cell - this.start) % this.cols];
    place(this.cursor, this.picture.frame, [left + col * w, top + line * h, left + (col + 1) * w, top + (line + 1) * h]);
  }
  // Where a visual token is, counted from 1; "" if it belongs to another picture.
  where(cell) {
    if (cell < this.start || cell >= this.stop) return "";
    if (!this.picture.box) return `query ${cell - this.start + 1} of ${this.name.toLowerCase()}`;
    const line = Math.floor((cell - this.start) / this.cols) + 1;
    const col = ((cell - this.start) % this.cols) + 1;
    const of = this.side.pictures.length > 1 ? `, ${this.name.toLowerCase()}` : "";
    return `row ${line}, column ${col}${of}`;
  }
}

// All layers of one picture: a button each, which chooses the layer.
class Multiples {
  constructor(view, layers, choose) {
    this.view = view;
    this.minis = [...Array(layers).keys()].map((layer) => {
      const { node, image, canvas } = pictureFrame(view.picture, "");
      image.classList.add("under");
      const caption = el("span", {}, String(layer));
      const button = el("button", { type: "button", class: "mini", "data-layer": layer }, node, caption);
      button.addEventListener("click", () => choose(layer));
      return { button, canvas, caption };
    });
    this.node = el("div", { class: "multiples", role: "group", "aria-label": "All layers" }, ...this.minis.map((one) => one.button));
    rove(this.node, () => this.minis.map((one) => one.button), false);
  }
  show(rows, range, current) {
    const { start, stop } = this.view;
    this.minis.forEach(({ button, canvas }, layer) => {
      const values = rows[layer].slice(start, stop);
      drawMap(canvas, values, this.view.rows, this.view.cols, range ?? rangeOf(rows[layer]));
      button.setAttribute("aria-label", `Layer ${layer}: largest ${percent(Math.max(...values, 0))}`);
      button.setAttribute("aria-pressed", String(layer === current));
      button.tabIndex = layer === current ? 0 : -1;
    });
  }
}
