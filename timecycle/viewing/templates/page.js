"use strict";
/* Sorts tables, draws charts, seeks videos. base.html.jinja says what it reads from the page. */
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const MINUS = "\u2212";
  const textOf = (value, digits = 3) =>
    value === null || value === undefined ? "\u2013" : value.toFixed(digits).replace("-", MINUS);

  // Tables

  const NONE = ["", "-", "\u2013"];

  function valueOf(row, column) {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim();
    if (NONE.includes(text)) return null;
    const number = Number(text.replace(MINUS, "-"));
    return Number.isNaN(number) ? text : number;
  }

  function compare(a, b) {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    return typeof a === "number" ? -1 : 1;
  }

  function ordered(items, key, sign) {
    const values = items.map((item) => [key(item), item]);
    const last = (value) => value === null;
    return values
      .sort(([a], [b]) => (last(a) || last(b) ? last(a) - last(b) : sign * compare(a, b)))
      .map(([, item]) => item);
  }

  function sortTable(table, column, sign) {
    const groups = [...table.tBodies];
    for (const body of groups) {
      const rows = [...body.rows];
      const kept = groups.length > 1 ? rows.splice(0, 1) : [];
      body.append(...kept, ...ordered(rows, (row) => valueOf(row, column), sign));
    }
    if (groups.length > 1) {
      const sorted = ordered(groups, (body) => valueOf(body.rows[0], column), sign);
      sorted.forEach((body) => table.insertBefore(body, table.tFoot));
    }
  }

  for (const table of all("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      if (head.dataset.sort === "none") return;
      const button = make("button", { type: "button" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.dataset.sort === "descending" ? -1 : 1;
        const now = { ascending: 1, descending: -1 }[head.getAttribute("aria-sort")];
        const sign = now ? -now : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        sortTable(table, column, sign);
      });
    });
  }

  for (const button of all("button.toggle")) {
    const body = button.closest("tbody");
    const show = (open) => {
      button.setAttribute("aria-expanded", open);
      body.classList.toggle("closed", !open);
    };
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
    show(button.getAttribute("aria-expanded") === "true");
  }

  // Videos

  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  function seek(id, frame) {
    const video = document.getElementById(id);
    if (!video) return;
    const seconds = (frame + 0.5) / Number(video.dataset.fps); // the middle of the frame, whatever is rounded
    const go = () => {
      video.pause();
      video.currentTime = seconds;
    };
    if (video.readyState >= 1) go();
    else {
      video.preload = "auto";
      video.addEventListener("loadedmetadata", go, { once: true });
      video.load();
    }
    video.scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
  }

  document.addEventListener("click", (event) => {
    const source = event.target.closest("[data-seek]");
    if (!source || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    seek(source.dataset.seek, Number(source.dataset.frame));
  });

  // Charts

  const THEME_COLORS = 8;
  const MARK_ROWS = 3; // of the texts of marks that may lie close together

  function cssColor(color, index) {
    if (Array.isArray(color)) return `light-dark(${color[0]}, ${color[1]})`;
    return `var(--series-${(((color ?? index + 1) - 1) % THEME_COLORS) + 1})`;
  }

  class Chart {
    constructor(box) {
      this.box = box;
      this.data = JSON.parse(document.getElementById(box.dataset.chart).textContent);
      this.plots = [];
      this.index = null;
      this.readout = make("ul", { class: "readout" });
      this.panels = this.data.panels.map(() => make("div", { class: "panel" }));
      const labels = this.data.panels.map((panel) => panel.label ?? "");
      if (labels.length > 1) this.panels.forEach((box, i) => box.append(make("p", { class: "panel-label" }, labels[i])));
      box.append(this.readout, ...this.panels);
      this.makeReadout();
      this.makeFocusable();
      this.draw();
      if (this.data.video) this.followVideo();
      new ResizeObserver(() => this.resize()).observe(box);
    }

    /* The legend: a name and a color for each series; behind them the values at the cursor, of all panels. */
    makeReadout() {
      this.where = make("li", {}, make("b"));
      this.items = new Map();
      this.data.panels.forEach((panel, number) =>
        panel.series.forEach((series, index) => {
          if (!this.items.has(series.name)) {
            const swatch = make("span", { class: "swatch" });
            swatch.style.color = cssColor(series.color, index);
            const item = make("li", {}, swatch, series.name);
            this.items.set(series.name, { item, swatch, values: [] });
          }
          const entry = this.items.get(series.name);
          const value = make("b");
          const label = this.data.panels.length > 1 ? (panel.label ?? "") : "";
          entry.item.append(make("span", { class: "quiet" }, label), value);
          entry.values.push({ number, index, value, label, digits: panel.digits ?? 3 });
        }),
      );
      this.readout.append(this.where, ...[...this.items.values()].map((entry) => entry.item));
      this.show(null);
    }

    nameOf(index) {
      return `${this.data.x_label ?? ""} ${this.data.names?.[index] ?? this.data.x[index]}`.trim();
    }

    show(index) {
      this.index = index;
      this.readout.classList.toggle("idle", index === null);
      const { x_label: label = "" } = this.data;
      this.where.firstChild.textContent = index === null ? label : this.nameOf(index);
      const words = [];
      for (const [name, { values }] of this.items) {
        for (const { number, index: line, value, label, digits } of values) {
          const found = index === null ? null : this.data.panels[number].series[line].values[index];
          value.textContent = textOf(found, digits);
          words.push([name, label, value.textContent].filter(Boolean).join(" "));
        }
      }
      if (index === null) return;
      this.box.setAttribute("aria-valuenow", index);
      this.box.setAttribute("aria-valuetext", `${this.nameOf(index)}: ${words.join(", ")}`);
    }

    makeFocusable() {
      const { box, data } = this;
      const label = `${data.label ?? "chart"}; arrow keys move along it${data.video ? ", Enter seeks the video" : ""}`;
      const last = data.x.length - 1;
      const attributes = { role: "slider", "aria-label": label, "aria-valuemin": 0, "aria-valuemax": last, "aria-valuenow": 0 };
      for (const [name, value] of Object.entries(attributes)) box.setAttribute(name, value);
      box.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
        const at = this.index ?? (step > 0 ? -1 : 1);
        const to = { Home: 0, End: last }[event.key] ?? (step && Math.min(last, Math.max(0, at + step)));
        if (to !== undefined) this.moveTo(to);
        else if (event.key === "Enter" && this.index !== null) this.seek();
        else return;
        event.preventDefault();
      });
      box.addEventListener("blur", () => this.plots.forEach((plot) => plot.setCursor({ left: -10, top: -10 })));
    }

    moveTo(index) {
      const left = this.plots[0].valToPos(this.data.x[index], "x");
      this.plots.forEach((plot) => plot.setCursor({ left, top: 0 }));
      this.show(index);
    }

    seek() {
      if (this.data.video && this.index !== null) seek(this.data.video, this.data.x[this.index]);
    }

    /* The cursor is where the video is. */
    followVideo() {
      this.box.dataset.video = this.data.video;
      const video = document.getElementById(this.data.video);
      video?.addEventListener("timeupdate", () => {
        const frame = Math.floor(video.currentTime * Number(video.dataset.fps) + 0.01);
        const index = this.data.x.indexOf(frame);
        if (index >= 0) this.moveTo(index);
      });
    }

    width() {
      return Math.max(120, Math.floor(this.panels[0].clientWidth));
    }

    height() {
      return parseFloat(getComputedStyle(this.box).getPropertyValue("--plot")) || 150;
    }

    draw() {
      this.plots.forEach((plot) => plot.destroy());
      this.plots = this.data.panels.map((panel, number) => this.plot(panel, number));
    }

    plot(panel, number) {
      const { x, marks = [] } = this.data;
      const style = getComputedStyle(this.box);
      const [text, line] = [style.color, style.borderTopColor];
      const font = `12px ${style.fontFamily}`;
      const axis = { stroke: text, font, grid: { stroke: line, width: 1 }, ticks: { show: false }, gap: 6 };
      const ranges = panel.series.filter((series) => series.low);
      const colorOf = (series) => getComputedStyle(this.items.get(series.name).swatch).color;
      const whole = (splits) => splits.map((value) => (Number.isInteger(value) ? value : ""));
      const tens = (plot, splits) => splits.map((value) => (Number.isInteger(Math.log10(value)) ? value : null));
      const tick = (value) => {
        if (value === null || value === 0 || Math.abs(value) >= 0.01) return value?.toLocaleString("en") ?? "";
        return Number(value.toPrecision(3)).toExponential().replaceAll("-", MINUS);
      };
      const range = (plot, low, high) => {
        const [least, most] = [panel.min ?? low ?? 0, panel.max ?? high ?? 1];
        const room = least === most ? 0.5 : 0.03 * (most - least); // lines on the border are drawn whole
        return [least - room, most + room];
      };
      const options = {
        width: this.width(),
        height: this.height(),
        padding: [8, 16, 0, 0],
        legend: { show: false },
        cursor: {
          y: false,
          drag: { x: false, y: false },
          sync: { key: this.box.dataset.chart, setSeries: false },
          points: {
            size: 7,
            width: 0,
            fill: (plot, index) => (index > panel.series.length ? "transparent" : plot.series[index].stroke()),
          },
        },
        scales: {
          x: { time: false, range: (plot, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
          y: panel.log ? { distr: 3 } : { range },
        },
        axes: [
          { ...axis, size: 24, values: (plot, splits) => (x.every(Number.isInteger) ? whole(splits) : splits) },
          { ...axis, size: 46, values: (plot, splits) => splits.map(tick), grid: panel.log ? { ...axis.grid, filter: tens } : axis.grid },
        ],
        series: [
          {},
          ...panel.series.map((series) => ({
            stroke: colorOf(series),
            width: 1.6,
            points: { show: Boolean(series.points) || series.values.filter((v) => v !== null).length === 1, size: 6 },
          })),
          ...ranges.flatMap((series) => Array(2).fill({ stroke: colorOf(series), width: 1, alpha: 0.5 / (1 + ranges.length), points: { show: false } })),
        ],
        bands: ranges.map((series, number) => {
          const low = 1 + panel.series.length + 2 * number;
          return { series: [low + 1, low], fill: colorOf(series) };
        }),
        hooks: {
          setCursor: [(plot) => this.show(plot.cursor.idx ?? null)],
          draw: [(plot) => this.drawMarks(plot, marks, text, font, number === 0)],
        },
      };
      const behind = ranges.flatMap(({ low, high }) => [low, high ?? low]);
      const data = [x, ...panel.series.map((series) => series.values), ...behind];
      const plot = new uPlot(options, data, this.panels[number]);
      plot.over.addEventListener("click", () => this.seek());
      return plot;
    }

    drawMarks(plot, marks, color, font, named) {
      const { ctx, bbox } = plot;
      ctx.save();
      [ctx.strokeStyle, ctx.lineWidth] = [color, uPlot.pxRatio];
      ctx.setLineDash([2 * uPlot.pxRatio, 3 * uPlot.pxRatio]);
      ctx.font = font.replace(/^\d+/, (size) => size * uPlot.pxRatio);
      marks.forEach((mark, index) => {
        const left = Math.round(plot.valToPos(mark.x, "x", true));
        ctx.beginPath();
        ctx.moveTo(left, bbox.top);
        ctx.lineTo(left, bbox.top + bbox.height);
        ctx.stroke();
        const late = left > bbox.left + 0.7 * bbox.width;
        ctx.textAlign = late ? "right" : "left";
        ctx.textBaseline = "top";
        const [gap, row] = [4 * uPlot.pxRatio, 14 * uPlot.pxRatio * (index % MARK_ROWS)];
        if (!named || !mark.text) return;
        const place = [mark.text, left + (late ? -gap : gap), bbox.top + gap + row];
        const wide = ctx.measureText(mark.text).width;
        ctx.fillStyle = getComputedStyle(document.body).backgroundColor; // no line of the chart crosses the text
        ctx.fillRect(place[1] - (late ? wide : 0), place[2], wide, 13 * uPlot.pxRatio);
        ctx.fillStyle = color;
        ctx.fillText(...place);
      });
      ctx.restore();
    }

    resize() {
      const width = this.width();
      if (this.plots.some((plot) => plot.width !== width))
        this.plots.forEach((plot) => plot.setSize({ width, height: this.height() }));
    }
  }

  const charts = new Map();
  const drawn = (box) => charts.has(box) || charts.set(box, new Chart(box));
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        drawn(target);
      }
    },
    { rootMargin: "600px" },
  );
  for (const box of all("[data-chart]")) {
    near.observe(box);
    box.tabIndex = 0;
    box.addEventListener("focus", () => drawn(box), { once: true });
  }

  // A chart's values as a table

  function valuesTable(data) {
    const columns = data.panels.flatMap((panel) => panel.series.map((series) => ({ ...panel, series })));
    const named = ({ series, label }) => [data.panels.length > 1 && label, series.name].filter(Boolean).join(", ");
    const head = make("tr", {}, make("th", { scope: "col" }, data.x_label ?? ""));
    head.append(...columns.map((column) => make("th", { scope: "col" }, named(column))));
    const body = make("tbody");
    data.x.forEach((x, index) => {
      const row = make("tr", {}, make("th", { scope: "row" }, String(data.names?.[index] ?? x)));
      row.append(...columns.map((column) => make("td", {}, textOf(column.series.values[index], column.digits))));
      body.append(row);
    });
    return make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), body));
  }

  for (const details of all("details[data-values]")) {
    const fill = () => {
      if (!details.querySelector("table"))
        details.append(valuesTable(JSON.parse(document.getElementById(details.dataset.values).textContent)));
    };
    details.addEventListener("toggle", fill);
  }

  // Theme and print: canvases take their colors when they are drawn

  const redraw = () => charts.forEach((chart) => chart.draw());
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const button = document.querySelector(".theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => (button.textContent = isDark() ? "Light theme" : "Dark theme");
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    redraw();
  });
  dark.addEventListener("change", () => (name(), redraw()));
  name();
  const printed = () => {
    all("[data-chart]").forEach(drawn);
    redraw();
  };
  addEventListener("beforeprint", printed);
  matchMedia("print").addEventListener("change", printed);
})();
