// The page: its head, its sides, and what links them.

function questionPanel(data) {
  const [one, other] = data.sides.map((side) => side.label);
  const gated = data.asked.some((asked) => asked.gate);
  const columns = ["question", one, other, "changed", "KL of the first token (nats)", ...(gated ? ["gate", "score", "opens from"] : [])];
  const cells = (asked) => [asked.prompt, ...asked.answers.map((text) => text || "(nothing)"), asked.changed ? "yes" : "no",
    asked.divergence ?? "other vocabulary", ...(gated ? gateCells(asked.gate) : [])];
  const rows = data.asked.map(cells);
  const body = rows.map((one, i) => {
    const node = row(one[0], one.slice(1).map((cell) => (typeof cell !== "number" ? word(cell) : cell > 0 && cell < 0.001 ? "< 0.001" : shown(cell))));
    node.querySelector("th").replaceChildren(word(one[0]), data.asked[i].edited ? el("span", { class: "p" }, data.edited ? " (asked here)" : "") : "");
    if (data.asked[i].changed && !data.asked[i].edited && data.edited) node.classList.add("leak");
    return node;
  });
  return panel(data.edited ? "Does the edit hold, and does it leak?" : "The same questions to both models", "questions",
    el("p", { class: "finding" }, data.edited ? leakSentence(data) : differSentence(data)),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Questions and answers" }, el("table", {}, tableHead(columns), el("tbody", {}, ...body))),
    copyButton("Copy as CSV", () => csvOf(columns, rows)));
}

function gateCells(gate) {
  return gate ? [gate.open ? "open" : "shut", gate.score, gate.threshold] : ["none", "none", "none"];
}

function leakSentence(data) {
  const others = data.asked.filter((one) => !one.edited);
  const leaks = others.filter((one) => one.changed).length;
  const own = data.asked[0];
  const gate = own.gate ? ` The gate is ${own.gate.open ? "open" : "shut"} for it (score ${shown(Number(own.gate.score))}, opens from ${shown(Number(own.gate.threshold))}).` : " The edit has no gate: it is in force for every question, whether or not an answer changes.";
  const took = own.changed ? "The answer to the question changes." : "The answer to the question stays the same.";
  if (others.length === 1) return `${took}${gate} The other question about the picture ${leaks ? "changes its answer: the edit leaks" : "keeps its answer"}.`;
  const rest = others.length ? ` Of ${others.length} other questions about the picture, ${leaks || "none"} change${leaks === 1 ? "s" : ""} ${leaks === 1 ? "its" : "their"} answer${leaks ? ": the edit leaks" : ""}.` : "";
  return took + gate + rest;
}

function differSentence(data) {
  const differ = data.asked.filter((one) => one.changed).length;
  return `The models give different answers to ${differ} of ${data.asked.length} questions.`;
}

function aboutPanel(data) {
  const deep = data.sides[0].deep;
  const command = data.command ? [el("h4", {}, "The command"), el("pre", { tabindex: "0" }, data.command), copyButton("Copy the command", () => data.command)] : [];
  const cost = data.sides.map((side) => {
    const [plain, pass] = side.seconds;
    return `${side.label}: generating took ${shown(plain)} s; the captured pass and its numbers took ${shown(pass)} s.`;
  });
  const rows = [["model", data.sides.map((side) => side.model).join(", ")], ["prompt", `${data.prompt} (${data.template})`], ["noise of the perturbation", `${data.noise} standard deviations, seed ${data.seed}`],
    ...Object.entries(data.versions)];
  return el("details", { class: "about" }, el("summary", {}, "How the numbers are made, and the command"),
    el("ul", {}, ...[
      "Choose a word of the answer to see where it comes from; a word of the prompt shows what the model expects after it.",
      "Parts of the logit: what each layer's attention and MLP write at that position, through the final norm with its statistics frozen, times the direction of the token; with the other terms they add up to its logit.",
      "Logit lens: the state after each layer, normed and unembedded as if it were the last; visual tokens as well.",
      "Attention: from that position, mean over heads. Perturbation: the change of a layer's attention output at that position when one visual token is perturbed.",
      "Nearest words: the words of prompt and answer whose states after the same layer have the highest cosine with the visual token's.",
      ...(deep ? [
        "Reliance: noise of one standard deviation is added to the first layer's output at the visual tokens, or at the words of the prompt (mean of four draws); the share is the divergence under the first in the sum of both. Noise curves: the same, once, at the output of each layer.",
        `Patching: the states of one layer come from a pass over another picture (${deep.picture}) with the same prompt. The curve is the difference of the two answers' logits, scaled so that 0 is this picture's and 1 the other picture's; it can leave that range.`,
      ] : []),
      "Maps and attention are stored in 255 steps of the square root, so that a value is off by at most 0.4 % of the largest of its map.",
      ...cost,
    ].map((text) => el("li", {}, text))), ...command,
    el("table", {}, el("tbody", {}, ...rows.map(([name, value]) => row(name, [word(String(value))])))));
}

// Two sides move together where they can: layers if both have as many, answer tokens by number.
function link(one, other) {
  one.listeners.push((change) => {
    const passed = { ...change };
    if (one.data.layers !== other.data.layers) delete passed.layer;
    if (one.data.visual !== other.data.visual) delete passed.cell;
    if ("query" in passed) {
      const answer = passed.query - one.data.firstAnswer;
      const query = answer < 0 ? passed.query : Math.min(answer, other.data.answer.length - 1) + other.data.firstAnswer;
      if (one.data.firstAnswer === other.data.firstAnswer || answer >= 0) passed.query = query;
      else delete passed.query;
    }
    other.change(passed, true);
  });
}

function themeChoices() {
  const choices = new Choices("Theme", [["auto", "auto"], ["light", "light"], ["dark", "dark"]], (theme) => {
    document.documentElement.dataset.theme = theme;
    choices.set(theme);
  });
  choices.set("auto");
  return choices.node;
}

function sideChoices(data, sides) {
  const names = data.edited ? ["both", "before", "after"] : ["both", "first", "second"];
  const choices = new Choices("Sides shown", names.map((name, i) => [i, name]), (shownSide) => {
    sides.forEach((side, i) => { side.node.hidden = shownSide > 0 && shownSide !== i + 1; });
    choices.set(shownSide);
  });
  choices.set(0);
  return choices.node;
}

async function main() {
  const page = document.getElementById("page");
  const data = await readData();
  PALETTE = data.palette;
  const sides = data.sides.map((side) => new Side(side, data.sides.length > 1));
  const several = sides.length > 1;
  if (several) {
    link(...sides);
    link(sides[1], sides[0]);
    const { layer, cell } = sides[0].state;
    sides[0].listeners.forEach((listen) => listen({ layer, cell }));  // both start at the same place
  }
  const title = el("h1", {}, "Where the answer comes from", several && !data.edited ? "" : " · ", el("span", { class: "model" }, word(several && !data.edited ? "" : data.sides[0].model)));
  const head = el("header", {}, title, el("div", { class: "controls" }, several ? sideChoices(data, sides) : null, themeChoices()));
  page.replaceChildren(head, ...(data.asked.length ? [questionPanel(data)] : []),
    el("div", { class: several ? "sides two" : "sides" }, ...sides.map((side) => side.node)), aboutPanel(data));
  document.documentElement.dataset.ready = "yes";
}

main().catch((error) => {
  document.getElementById("page").textContent = `This page could not be drawn: ${error.message}`;
  throw error;
});
