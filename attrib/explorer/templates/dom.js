// Elements, tables, copying, colours. Texts of models and users are only ever text nodes.

let PALETTE = [];
let serial = 0;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function newId(name) {
  serial += 1;
  return `${name}-${serial}`;
}

// A word of a model: isolated, so that its direction cannot turn the text around it.
function word(text) {
  return el("bdi", { class: "word" }, text);
}

// The one colour map: a share from 0 to 1, by its square root as in the figures.
function colour(share) {
  return PALETTE[Math.round(Math.sqrt(Math.min(Math.max(share, 0), 1)) * (PALETTE.length - 1))];
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// How much of what is under a colour it covers: small shares stay clear.
function opacity(share) {
  return 0.88 * Math.sqrt(share);
}

// A word over a bar in the colour of its share, as on the picture.
function tinted(node, share) {
  node.style.borderBottomColor = share > 0 ? `rgba(${rgb(colour(share)).join(", ")}, ${opacity(share)})` : "transparent";
  return node;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { class: "copied" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function copyButton(label, text) {
  const button = el("button", { type: "button", class: "small" }, label);
  button.addEventListener("click", async () => {
    await copyText(text());
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

function row(name, cells, current) {
  return el("tr", current ? { class: "current" } : {}, el("th", { scope: "row" }, name),
    ...cells.map((cell) => el("td", {}, cell)));
}

function tableHead(columns) {
  return el("thead", {}, el("tr", {}, ...columns.map((name) => el("th", { scope: "col" }, name))));
}

// Numbers on demand: closed details with a table and a button that copies it as CSV. The rows are
// a function, which is called when somebody wants them.
class NumberTable {
  constructor(title) {
    this.columns = [];
    this.rows = () => [];
    this.slot = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title });
    const copy = copyButton("Copy as CSV", () => csvOf(this.columns, this.rows()));
    this.node = el("details", { class: "numbers" }, el("summary", {}, "Numbers"), copy, this.slot);
    this.node.addEventListener("toggle", () => this.draw());
    this.current = -1;
  }
  set(columns, rows, current = -1) {
    Object.assign(this, { columns, rows, current });
    this.draw();
  }
  draw() {
    if (!this.node.open) return;
    const cells = (one) => one.map((cell) => (typeof cell === "number" ? shown(cell) : word(cell)));
    const body = this.rows().map((one, i) => row(String(one[0]), cells(one.slice(1)), i === this.current));
    this.slot.replaceChildren(el("table", {}, tableHead(this.columns), el("tbody", {}, ...body)));
  }
}

function panel(title, name, ...children) {
  const id = newId("title");
  return el("section", { class: `panel ${name}`, "aria-labelledby": id }, el("h3", { id }, title), ...children);
}

// Buttons of which one is pressed: Tab reaches the group, arrow keys move inside it.
class Choices {
  constructor(label, options, choose) {
    this.buttons = options.map(([value, text]) => {
      const button = el("button", { type: "button", role: "radio", "data-value": value }, text);
      button.addEventListener("click", () => choose(value));
      return button;
    });
    this.node = el("div", { class: "choices", role: "radiogroup", "aria-label": label }, ...this.buttons);
    rove(this.node, () => this.buttons, true);
  }
  set(value) {
    for (const button of this.buttons) {
      const chosen = button.dataset.value === String(value);
      button.setAttribute("aria-checked", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
  }
}

// Arrow keys, Home and End move the focus among elements; with `press` they also choose.
function rove(node, items, press) {
  node.addEventListener("keydown", (event) => {
    const all = items().filter((one) => !one.disabled);
    const here = all.indexOf(document.activeElement);
    const moves = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1,
      Home: 0, End: all.length - 1 };
    if (here < 0 || !(event.key in moves)) return;
    event.preventDefault();
    const next = all[Math.min(Math.max(moves[event.key], 0), all.length - 1)];
    next.focus();
    if (press) next.click();
  });
}
