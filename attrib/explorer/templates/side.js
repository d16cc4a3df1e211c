// One side of the page: a model, or a model before or after an edit.

class Side {
  constructor(stored, several) {
    const side = this.data = decodeSide(stored);
    this.listeners = [];
    const query = side.firstAnswer;
    const layer = side.looks[query] ?? side.layers - 1;
    const read = side.visual ? side.attentionVisual.row(query, layer) : [];
    this.state = { query, layer, cell: read.indexOf(Math.max(...read)), map: "attention", view: "one", shared: "own", scale: "shares" };
    const act = (change) => this.change(change);
    this.tokens = new TokenRow(side, act);
    this.finding = el("div", { class: "finding", "aria-live": "polite" });
    this.slider = el("input", { type: "range", min: 0, max: side.layers - 1, step: 1, class: "layer", id: newId("layer") });
    this.slider.addEventListener("input", () => act({ layer: Number(this.slider.value) }));
    this.layerName = el("output", { for: this.slider.id });
    const bar = el("div", { class: "layer-bar" }, el("label", { for: this.slider.id }, "Layer"), this.slider, this.layerName);
    this.panels = [new ContributionPanel(side, act), new LensPanel(side, act), new WordPanel(side, act)];
    const [contributions, lens, words] = this.panels;
    const left = [];
    const below = [];
    if (side.visual) {
      this.token = new TokenPanel(side, act);
      left.push(this.picturePanel(act));
      below.push(this.token.node);
    }
    const middle = [contributions.node, words.node];
    if (side.deep) {
      this.panels.push(new DeepPanel(side, act));
      below.push(this.panels[3].node);
    }
    const columns = [left, middle, [lens.node]].filter((some) => some.length);
    const name = several ? `${side.label}` : `${side.model}`;
    this.node = el("section", { class: "side", "aria-label": name }, several ? el("h2", {}, word(name)) : null,
      this.tokens.node, this.finding, bar, el("div", { class: "columns" }, ...columns.map((some) => el("div", { class: "column" }, ...some))), ...below);
    this.draw();
  }
  picturePanel(act) {
    const side = this.data;
    this.kind = new Choices("What the map shows", [["attention", "attention"], ["heat", "perturbation"], ["none", "picture"]], (map) => act({ map }));
    this.view = new Choices("Layers shown", [["one", "one layer"], ["all", "all"]], (view) => act({ view }));
    this.shared = new Choices("Scale of colours", [["own", "own scale"], ["same", "shared"]], (shared) => act({ shared }));
    this.views = side.pictures.map((picture, i) => new PictureView(picture, i, side, (cell) => act({ cell })));
    this.multiples = this.views.map((view) => new Multiples(view, side.layers, (layer) => act({ layer })));
    this.scale = el("p", { class: "scale" });
    this.note = el("p", { class: "caption" });
    this.numbers = new NumberTable("The map");
    this.frames = el("div", { class: "frames" }, ...this.views.map((one) => one.node));
    this.all = el("div", {}, ...this.multiples.map((one) => one.node));
    return panel("The picture with its visual tokens", "picture", el("div", { class: "controls" }, this.kind.node, this.view.node, this.shared.node),
      this.frames, this.token.title, this.all, this.scale, this.note, this.numbers.node);
  }
  change(change, told = false) {
    Object.assign(this.state, change);
    if (Object.keys(change).every((name) => ["cell", "map", "view", "shared"].includes(name))) this.drawPicture();
    else this.draw();
    if (!told) this.listeners.forEach((listen) => listen(change));
  }
  draw() {
    const { state, data: side } = this;
    this.slider.value = state.layer;
    this.slider.setAttribute("aria-valuetext", `Layer ${state.layer} of 0 to ${side.layers - 1}`);
    this.layerName.textContent = `${state.layer} of 0–${side.layers - 1}`;
    this.tokens.show(state);
    this.finding.replaceChildren(...side.findings[state.query].map((line) => el("p", {}, line)));
    this.panels.forEach((one) => one.show(state));
    if (side.visual) this.drawPicture();
  }
  maps() {
    const { state, data: side } = this;
    const answer = state.query - side.firstAnswer;
    const each = [...Array(side.layers).keys()];
    if (state.map !== "heat") return each.map((i) => side.attentionVisual.row(state.query, i));
    return answer >= 0 && answer < side.heat.count ? each.map((i) => side.heat.row(answer, i)) : null;
  }
  drawPicture() {
    const { state, data: side } = this;
    const rows = this.maps();
    const all = state.view === "all" && rows !== null && state.map !== "none";
    const plain = state.map === "none" || rows === null;
    this.kind.set(state.map);
    this.view.set(state.view);
    this.shared.set(state.shared);
    const values = rows === null ? [] : rows[state.layer];
    const shared = state.shared === "same" && rows !== null ? rangeOf(rows.flat()) : null;
    const range = shared ?? rangeOf(values);
    this.views.forEach((one) => one.show(values, range, state.cell, plain));
    this.all.hidden = !all;
    if (all) this.multiples.forEach((one) => one.show(rows, shared, state.layer));
    this.scale.hidden = plain;
    const format = state.map === "heat" ? shown : percent;
    this.scale.replaceChildren(format(range[0]), el("span", { class: "ramp", style: { background: `linear-gradient(to right, ${[...Array(12).keys()].map((i) => colour((i / 11) ** 2)).join(", ")})` } }), format(range[1]));
    this.note.textContent = this.explain(rows, values);
    const where = (cell) => this.views.map((one) => one.where(cell)).find((text) => text) ?? "outside the grid";
    this.token.show(state, state.cell >= 0 ? where(state.cell) : "");
    const columns = ["visual token", "place", ...[...Array(side.layers).keys()].map((i) => `layer ${i}`)];
    const cells = rows === null ? [] : [...Array(side.visual).keys()];
    this.numbers.set(columns, () => cells.map((cell) => [cell + 1, where(cell), ...rows.map((one) => one[cell])]));
  }
  explain(rows, values) {
    const { state, data: side } = this;
    if (state.map === "none") return "The picture as the model was given it.";
    if (rows === null) return state.query < side.firstAnswer ? "Perturbation maps are of generated tokens: choose one of the answer." : "Perturbation maps are of the first generated tokens; --deep makes them of all.";
    if (!values.some(Number.isFinite)) return `Layer ${state.layer} has no attention.`;
    return state.map === "heat"
      ? `Layer ${state.layer}: how much its attention output at this position changes when one visual token is perturbed (VisEdit Eq. 7). Colours follow the square root.`
      : `Layer ${state.layer}: attention from this position to each visual token, mean over heads. Colours follow the square root.`;
  }
}

// The prompt and the answer as chips; those that can be looked at are buttons.
class TokenRow {
  constructor(side, act) {
    const chip = (text, query, more) => {
      const button = el("button", { type: "button", class: "chip", "data-query": query }, word(text), more);
      button.addEventListener("click", () => act({ query }));
      this.buttons.push(button);
      return button;
    };
    this.buttons = [];
    const prompt = side.chips.map((one) => {
      if (one.visual) return el("span", { class: "chip pictured" }, `▦ ${one.visual} visual tokens`);
      const text = side.word(one.word);
      return one.query < 0 ? el("span", { class: "chip still" }, word(text)) : chip(text, one.query, null);
    });
    const answer = side.answer.map((one, i) => chip(side.text(one.token), side.firstAnswer + i, el("span", { class: "p" }, percent(one.p))));
    this.node = el("div", { class: "tokens" },
      el("div", { class: "token-row" }, el("span", { class: "kind" }, "Prompt"), el("span", { class: "chips", dir: "auto" }, ...prompt)),
      el("div", { class: "token-row answer" }, el("span", { class: "kind" }, "Answer"), el("span", { class: "chips", dir: "auto" }, ...answer)));
    rove(this.node, () => this.buttons, true);
  }
  show({ query }) {
    for (const button of this.buttons) {
      const chosen = Number(button.dataset.query) === query;
      button.setAttribute("aria-pressed", String(chosen));
      button.tabIndex = chosen ? 0 : -1;
    }
  }
}
