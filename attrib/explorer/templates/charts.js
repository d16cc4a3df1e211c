// Small charts over the layers: bars of two kinds, and lines.

const WIDTH = 360;
const HEIGHT = 150;
const MARGIN = { left: 44, right: 8, top: 10, bottom: 22 };
const SERIES = ["blue", "red", "green", "grey"];

function niceRange(values, fromZero = true) {
  const known = values.filter(Number.isFinite);
  let low = Math.min(...known, fromZero ? 0 : Infinity);
  let high = Math.max(...known, fromZero ? 0 : -Infinity);
  if (!known.length) [low, high] = [0, 1];
  return low === high ? [low, low + 1] : [low, high];
}

function ticks(low, high) {
  const raw = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((one) => one >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(t);
  return found;
}

function scaleOf(low, high, from, to) {
  return (value) => from + ((value - low) / (high - low)) * (to - from);
}

// The frame of a chart: axes, layer names, a band at the current layer; clicks choose a layer.
function frame(layers, low, high, label, current, choose, format) {
  const y = scaleOf(low, high, HEIGHT - MARGIN.bottom, MARGIN.top);
  const slot = (WIDTH - MARGIN.left - MARGIN.right) / layers;
  const x = (layer) => MARGIN.left + (layer + 0.5) * slot;
  const every = Math.ceil(layers / 12);
  const names = [...Array(layers).keys()].filter((layer) => layer % every === 0);
  const node = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label, class: "chart" },
    svg("rect", { x: x(current) - slot / 2, y: MARGIN.top, width: slot, height: HEIGHT - MARGIN.top - MARGIN.bottom, class: "band" }),
    ...ticks(low, high).flatMap((tick) => [
      svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(tick), y2: y(tick), class: tick === 0 ? "zero" : "grid" }),
      svg("text", { x: MARGIN.left - 5, y: y(tick) + 4, class: "tick end" }, format(tick)),
    ]),
    ...names.map((layer) => svg("text", { x: x(layer), y: HEIGHT - 7, class: `tick middle${layer === current ? " here" : ""}` }, String(layer))));
  node.addEventListener("click", (event) => {
    const box = node.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * WIDTH;
    choose(Math.min(Math.max(Math.floor((at - MARGIN.left) / slot), 0), layers - 1));
  });
  return { node, x, y, slot };
}

// Two bars per layer: attention and MLP.
function barChart(pairs, label, current, choose) {
  const [low, high] = niceRange(pairs.flat());
  const { node, x, y, slot } = frame(pairs.length, low, high, label, current, choose, (t) => shown(t, 2));
  const width = Math.max(slot * 0.36, 1);
  pairs.forEach((pair, layer) => pair.forEach((value, module) => {
    if (!Number.isFinite(value)) return;
    const left = x(layer) + (module ? 0.03 * slot : -width - 0.03 * slot);
    node.append(svg("rect", { x: left, width, y: Math.min(y(value), y(0)), height: Math.abs(y(value) - y(0)), class: `fill ${SERIES[module]}` },
      svg("title", {}, `layer ${layer}, ${module ? "MLP" : "attention"}: ${shown(value)}`)));
  }));
  return node;
}

// Lines with a marker of their own, named in the legend.
function lineChart(series, label, current, choose, format = (t) => shown(t, 2)) {
  const [low, high] = niceRange(series.flatMap((one) => one.values));
  const layers = series[0].values.length;
  const { node, x, y } = frame(layers, low, high, label, current, choose, format);
  series.forEach((one, i) => {
    const known = one.values.map((value, layer) => [layer, value]).filter(([, v]) => Number.isFinite(v));
    const points = known.map(([layer, value]) => `${x(layer)},${y(value)}`).join(" ");
    node.append(svg("polyline", { points, class: `line ${SERIES[i % SERIES.length]} dash${i}` }));
    if (layers > 40) return;
    node.append(...known.map(([layer, value]) => marker(i, x(layer), y(value))));
  });
  return node;
}

function marker(kind, x, y) {
  const name = `fill ${SERIES[kind % SERIES.length]}`;
  if (kind % 3 === 0) return svg("circle", { cx: x, cy: y, r: 2.6, class: name });
  if (kind % 3 === 1) return svg("rect", { x: x - 2.4, y: y - 2.4, width: 4.8, height: 4.8, class: name });
  return svg("path", { d: `M${x} ${y - 3.4}L${x + 3.2} ${y + 2.4}H${x - 3.2}Z`, class: name });
}

function legend(names) {
  return el("p", { class: "legend" }, ...names.map((name, i) =>
    el("span", {}, svg("svg", { viewBox: "0 0 20 10", class: "key" },
      svg("line", { x1: 0, x2: 20, y1: 5, y2: 5, class: `line ${SERIES[i % SERIES.length]} dash${i}` }), marker(i, 10, 5)), ` ${name}`)));
}

function barLegend(names) {
  return el("p", { class: "legend" }, ...names.map((name, i) =>
    el("span", {}, svg("svg", { viewBox: "0 0 10 10", class: "key box" },
      svg("rect", { width: 10, height: 10, class: `fill ${SERIES[i]}` })), ` ${name}`)));
}
