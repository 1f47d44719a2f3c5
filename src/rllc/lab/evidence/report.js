"use strict";
// Every chart is drawn by Plotly.react from the data and one small state; a change of the state redraws
// what is near the screen, and the rest when it comes near.

const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const state = {curve: "test_accuracy", hidden: new Set(), focus: null, printing: false};
const charts = [...document.querySelectorAll(".chart")];
const near = new Set();
const stale = new Set(charts);

const TITLES = {
  test_accuracy: "test accuracy, %",
  valid_accuracy: "validation accuracy, %",
  train_loss: "training loss, nats",
};
const UNITS = ["solid", "dash", "dot", "dashdot"];
const CONFIG = {
  displaylogo: false,
  modeBarButtons: [["toImage", "resetScale2d"]],
};

const PAPER = {curves: 680, law: 330}; // widths in pixels that fit a printed page

// Plotly reads some HTML in texts, and %{...} in templates; names are neither.
const plain = (text) => text.replace(/[&<>%]/g, (c) => `&#${c.charCodeAt(0)};`);

const isDark = () => dark.matches && !state.printing;
const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
const shade = (optimizer) => data.optimizers[optimizer][isDark() ? "dark" : "light"];

/** A mean line, and the band from the smallest to the largest value, if there are several seeds. */
function traces(step, values, line, name, hover, look = {}) {
  const {mean, low, high} = values;
  const mark = {legendgroup: name, mode: "lines", ...look};
  const band = low && {
    ...mark,
    x: [...step, ...step.toReversed()],
    y: [...high, ...low.toReversed()],
    fill: "toself",
    fillcolor: line.color + "1c",
    line: {width: 0},
    hoverinfo: "skip",
    showlegend: false,
  };
  const curve = {
    ...mark,
    x: step,
    y: mean,
    line: {width: 1.8, ...line},
    name: plain(name),
    customdata: step.map((_, i) => (low ? ` (${low[i]} to ${high[i]})` : "")),
    hovertemplate: hover,
  };
  return {band, curve};
}

/** All bands below all lines. */
const layered = (pairs) => [...pairs.map(({band}) => band).filter(Boolean), ...pairs.map(({curve}) => curve)];

function curves(panel) {
  return layered(panel.rows.map((row) => {
    const {name, dash} = data.optimizers[row.optimizer];
    const faint = state.focus !== null && state.focus !== row.optimizer;
    const look = {visible: !state.hidden.has(row.optimizer), opacity: faint ? 0.12 : 1};
    const hover = `<b>${plain(name)}</b><br>step %{x:,}<br>%{y}%{customdata}<extra></extra>`;
    return traces(row.step, row[state.curve], {color: shade(row.optimizer), dash}, name, hover, look);
  }));
}

function law(row) {
  return layered(row.law.map((unit, j) => {
    const line = {color: shade(row.optimizer), dash: UNITS[j % UNITS.length]};
    return traces(row.step, unit, line, unit.unit, "%{y}%{customdata}");
  }));
}

/** What all charts share. */
function layout() {
  const axis = {
    automargin: true,
    fixedrange: matchMedia("(pointer: coarse)").matches, // a finger on a chart scrolls the page
    gridcolor: css("--line"),
    zeroline: false,
  };
  return {
    font: {family: "system-ui, sans-serif", size: 12, color: css("--muted")},
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    margin: {l: 8, r: 26, t: 28, b: 8},
    modebar: {bgcolor: "transparent", color: css("--muted"), activecolor: css("--ink")},
    hoverlabel: {bgcolor: css("--paper"), bordercolor: css("--muted"), font: {color: css("--ink")}},
    xaxis: {...axis, showgrid: false, showline: true, linecolor: css("--muted"), ticks: "outside", tickformat: ","},
    yaxis: axis,
  };
}

function curvesLayout(panel) {
  const made = layout();
  const range = panel.windows[state.curve];
  Object.assign(made.yaxis, range ? {range} : {type: "log", dtick: "D2", tickformat: "~g"});
  return {
    ...made,
    title: {
      text: `${TITLES[state.curve]}, by step`,
      font: {size: 12},
      x: 0,
      y: 1,
      yanchor: "top",
      pad: {t: 6},
    },
    showlegend: false,
    hovermode: "closest",
    uirevision: state.curve, // a zoom outlives a change of optimizers
  };
}

function lawLayout(row) {
  const made = layout();
  Object.assign(made.xaxis, {nticks: 4});
  Object.assign(made.yaxis, {zeroline: true, zerolinecolor: css("--muted"), nticks: 6});
  return {
    ...made,
    hovermode: "x unified",
    showlegend: row.law.length > 1,
    legend: {orientation: "h", x: 0, y: 1, yanchor: "bottom", font: {size: 11}},
  };
}

function draw(chart) {
  stale.delete(chart);
  const panel = data.panels[chart.dataset.panel];
  const row = panel.rows[chart.dataset.row];
  const width = state.printing ? PAPER[row ? "law" : "curves"] : chart.clientWidth;
  const size = {width, height: chart.clientHeight}; // else Plotly keeps the first one
  if (row) {
    Plotly.react(chart, law(row), {...lawLayout(row), ...size}, {...CONFIG, displayModeBar: false});
  } else {
    Plotly.react(chart, curves(panel), {...curvesLayout(panel), ...size}, CONFIG);
  }
}

function refresh(changed = charts) {
  changed.forEach((chart) => stale.add(chart));
  near.forEach((chart) => stale.has(chart) && draw(chart));
}

function show(optimizers, visible) {
  optimizers.forEach((i) => (visible ? state.hidden.delete(i) : state.hidden.add(i)));
  document.querySelectorAll("[aria-pressed]").forEach((chip) => {
    chip.setAttribute("aria-pressed", !state.hidden.has(Number(chip.dataset.optimizer)));
  });
  document.querySelectorAll("figure[data-optimizer]").forEach((figure) => {
    figure.hidden = state.hidden.has(Number(figure.dataset.optimizer));
  });
  refresh();
}

function focus(optimizer) {
  state.focus = optimizer;
  refresh(charts.filter((chart) => chart.classList.contains("curves")));
}

document.querySelectorAll("button[aria-pressed]").forEach((chip) => {
  const optimizer = Number(chip.dataset.optimizer);
  chip.addEventListener("click", () => show([optimizer], state.hidden.has(optimizer)));
  chip.addEventListener("pointerenter", (e) => e.pointerType === "mouse" && focus(optimizer));
  chip.addEventListener("pointerleave", (e) => e.pointerType === "mouse" && focus(null));
});
document.querySelectorAll("button[data-all]").forEach((button) => {
  button.addEventListener("click", () => show([...data.optimizers.keys()], button.dataset.all === "true"));
});
document.querySelectorAll("input[name=curve]").forEach((input) => {
  input.addEventListener("change", () => {
    state.curve = input.value;
    refresh();
  });
});
document.querySelectorAll("input[name=reading]").forEach((input) => {
  input.addEventListener("change", () => (document.body.dataset.reading = input.value));
});

dark.addEventListener("change", () => refresh());
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) refresh(); // not when a phone hides its address bar
  width = innerWidth;
});
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
  addEventListener(event, () => {
    state.printing = printing;
    refresh();
    if (printing) stale.forEach(draw);
  });
}

// Browsers restore what was chosen when a page is reloaded.
document.querySelectorAll("input:checked").forEach((input) => input.dispatchEvent(new Event("change")));
document.body.classList.add("alive");

// More lines than these are a tangle at first sight.
const FIRST = 7;
if (data.optimizers.length > 2 * FIRST) show([...data.optimizers.keys()].slice(FIRST), false);

const observer = new IntersectionObserver(
  (entries) => entries.forEach(({target, isIntersecting}) => {
    if (isIntersecting) near.add(target);
    else near.delete(target);
    if (isIntersecting && stale.has(target)) draw(target);
  }),
  {rootMargin: "300px"},
);
addEventListener("DOMContentLoaded", () => charts.forEach((chart) => observer.observe(chart))); // Plotly is there
