"use strict";
// Draws the figures of the page. Text of users reaches the document by textContent or `plain` alone.

const LAYOUT = {
  font: { family: "system-ui, sans-serif", size: 12, color: "#1b1f24" },
  margin: { l: 55, r: 15, t: 30, b: 45 },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  modebar: { bgcolor: "rgba(0,0,0,0)", color: "#9aa3ac", activecolor: "#0072b2" },
  hoverlabel: { align: "left", bgcolor: "#ffffff", font: { color: "#1b1f24" } },
};
const OPTIONS = { displaylogo: false, responsive: true, scrollZoom: false };
const LINES = { gridcolor: "#e8ebee", zeroline: false };

// Plotly reads markup in the text that it draws.
const plain = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const short = (text, most = 40) => (text.length > most ? text.slice(0, most - 1) + "…" : text);

async function unpacked(id) {
  const packed = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function element(name, parent, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function has_webgl() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
}

function draw_map(drawing, figure, missing) {
  const plot = element("div", drawing, "plot");
  const side = element("div", drawing, "side");
  const label = element("label", side, "", "Colored by");
  const select = element("select", label);
  const legend = element("ul", side, "legend");
  figure.colors.forEach((color, i) => (element("option", select, "", color.name).value = i));
  if (!figure.colors.length) label.hidden = true;

  const n = figure.x.length;
  const value = (color, i) => {
    const found = color.values[i];
    if (color.categories) return found < 0 ? "no value" : color.categories[found];
    return found === null ? "no value" : found;
  };
  const told = figure.names.map((name, i) =>
    [`<b>${plain(short(name, 60))}</b>`]
      .concat(figure.colors.map((c) => `${plain(c.name)}: ${plain(short(String(value(c, i))))}`))
      .join("<br>"));
  const size = Math.min(9, Math.max(2, 220 / Math.sqrt(n + 1)));
  const kind = has_webgl() ? "scattergl" : "scatter";
  let chosen = new Set();

  function trace(rows, marker) {
    const of = (values) => rows.map((i) => values[i]);
    return {
      type: kind, mode: "markers", x: of(figure.x), y: of(figure.y), text: of(told),
      hovertemplate: "%{text}<extra></extra>", marker: { size, ...marker }, showlegend: false,
    };
  }

  function draw() {
    const color = figure.colors[Number(select.value)];
    const rows = Array.from({ length: n }, (_, i) => i);
    let traces;
    if (!color) {
      traces = [trace(rows, { color: "#0072b2", opacity: 0.8 })];
    } else if (color.categories) {
      const shown = (i) => color.values[i] >= 0 && (!chosen.size || chosen.has(color.values[i]));
      const front = rows.filter(shown);
      traces = [
        trace(rows.filter((i) => !shown(i)), { color: missing, opacity: 0.5 }),
        trace(front, { color: front.map((i) => color.shades[color.values[i]]), opacity: 0.85 }),
      ];
    } else {
      const front = rows.filter((i) => color.values[i] !== null);
      traces = [
        trace(rows.filter((i) => color.values[i] === null), { color: missing, opacity: 0.5 }),
        trace(front, {
          color: front.map((i) => color.values[i]), colorscale: "Viridis", opacity: 0.85,
          ...(color.share && { cmin: 0, cmax: 1 }),
          showscale: true, colorbar: { thickness: 12, len: 0.5, outlinewidth: 0 },
        }),
      ];
    }
    const axis = { showgrid: false, zeroline: false, showticklabels: false };
    const title = (text) => ({ text, font: { size: 11, color: "#5b6570" } });
    const layout = {
      ...LAYOUT, margin: { l: 28, r: 10, t: 10, b: 28 }, dragmode: "pan", hovermode: "closest",
      uirevision: "same",
      xaxis: { ...axis, title: title("UMAP 1") },
      yaxis: { ...axis, title: title("UMAP 2"), scaleanchor: "x" },
    };
    const buttons = ["select2d", "lasso2d", "autoScale2d"];
    const options = { ...OPTIONS, scrollZoom: true, modeBarButtonsToRemove: buttons };
    return Plotly.react(plot, traces, layout, options);
  }

  function list() {
    legend.replaceChildren();
    const color = figure.colors[Number(select.value)];
    if (!color || !color.categories) return;
    color.categories.forEach((name, code) => {
      const button = element("button", element("li", legend));
      button.type = "button";
      button.title = name;
      button.classList.toggle("off", chosen.size > 0 && !chosen.has(code));
      element("span", button, "swatch").style.background = color.shades[code];
      element("span", button, "name", name);
      element("span", button, "size", color.sizes[code].toLocaleString("en"));
      button.onclick = () => {
        chosen.has(code) ? chosen.delete(code) : chosen.add(code);
        list();
        draw();
      };
    });
    if (color.missing) {
      const row = element("button", element("li", legend));
      row.disabled = true;
      element("span", row, "swatch").style.background = missing;
      element("span", row, "name", "no value");
      element("span", row, "size", color.missing.toLocaleString("en"));
    }
  }

  select.onchange = () => {
    chosen = new Set();
    list();
    draw();
  };
  list();
  return draw();
}

function draw_curve(drawing, figure) {
  const traces = figure.lines.map((line) => ({
    x: figure.x, y: line.y, name: plain(line.name), mode: figure.x.length > 30 ? "lines" : "lines+markers",
    line: { color: line.shade, width: 2 }, marker: { size: 5 },
  }));
  return Plotly.newPlot(drawing, traces, {
    ...LAYOUT, title: { text: plain(figure.title), font: { size: 14 }, x: 0, xref: "paper" },
    showlegend: traces.length > 1, legend: { orientation: "h", y: 1.12, x: 1, xanchor: "right" },
    xaxis: { ...LINES, title: { text: plain(figure.axis) } }, yaxis: { ...LINES },
  }, { ...OPTIONS, displayModeBar: false });
}

function draw_bars(drawing, figure) {
  const names = figure.x.map((name) => plain(short(name, 28)));
  const traces = figure.bars.map((bar) => ({
    type: "bar", x: figure.x.map((_, i) => i), y: bar.y, name: plain(short(bar.name)),
    text: names, textposition: "none", marker: { color: bar.shade },
    hovertemplate: `%{text}<br>${plain(bar.name)}: %{y}<extra></extra>`,
  }));
  return Plotly.newPlot(drawing, traces, {
    ...LAYOUT, barmode: figure.stacked ? "stack" : "group", margin: { ...LAYOUT.margin, b: 110 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, showlegend: traces.length > 1,
    xaxis: { tickvals: names.map((_, i) => i), ticktext: names, tickangle: names.length > 6 ? -40 : 0 },
    yaxis: { ...LINES, title: { text: plain(figure.axis) } },
  }, { ...OPTIONS, displayModeBar: false });
}

function draw_heat(drawing, figure) {
  const names = (list) => list.map((name) => plain(short(name, 36)));
  const [rows, columns] = [names(figure.rows), names(figure.columns)];
  drawing.style.height = `${Math.max(220, 130 + 20 * rows.length)}px`;
  return Plotly.newPlot(drawing, [{
    type: "heatmap", z: figure.values, zmin: -figure.limit, zmax: figure.limit,
    x: columns.map((_, i) => i), y: rows.map((_, i) => i), xgap: 1, ygap: 1, hoverongaps: false,
    text: figure.values.map((row, i) => row.map((_, j) => `${rows[i]}<br>${columns[j]}`)),
    hovertemplate: `%{text}<br>${plain(figure.axis)}: %{z}<extra></extra>`,
    colorscale: [[0, "#2166ac"], [0.25, "#92c5de"], [0.5, "#f7f7f7"], [0.75, "#f4a582"], [1, "#b2182b"]],
    colorbar: { thickness: 12, outlinewidth: 0, title: { text: plain(figure.axis), side: "right" } },
  }], {
    ...LAYOUT, margin: { l: 190, r: 15, t: 10, b: 90 }, plot_bgcolor: "#eceef0",
    xaxis: { tickvals: columns.map((_, i) => i), ticktext: columns, tickangle: -90, showgrid: false, zeroline: false },
    yaxis: { tickvals: rows.map((_, i) => i), ticktext: rows, autorange: "reversed", showgrid: false, zeroline: false },
  }, { ...OPTIONS, displayModeBar: false });
}

(async () => {
  try {
    const script = document.createElement("script");
    script.textContent = await unpacked("plotly");
    document.head.append(script);
    const { figures, missing } = JSON.parse(await unpacked("data"));
    const draw = { map: draw_map, curve: draw_curve, bars: draw_bars, heat: draw_heat };
    for (const [number, figure] of figures.entries()) {
      const drawing = document.querySelector(`#f${number} .drawing`);
      await draw[figure.kind](drawing, figure, missing);
    }
    document.body.dataset.drawn = figures.length;
  } catch (error) {
    document.getElementById("failed").hidden = false;
    throw error;
  }
})();
