"use strict";
(() => {
  const root = document.documentElement;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  // ---- charts: the page's colours in place of their names, drawn again when the theme changes

  const charts = read("charts");
  const views = new Map();

  function coloured(value, styles) {
    if (Array.isArray(value)) return value.map((item) => coloured(item, styles));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === "values" ? item : coloured(item, styles)]));
    }
    if (typeof value === "string" && /^\$[a-z]+\d?$/.test(value)) return styles.getPropertyValue("--" + value.slice(1)).trim();
    return value;
  }

  function themed(styles) {
    const [text, soft, line] = ["--text", "--soft", "--line"].map((name) => styles.getPropertyValue(name).trim());
    const narrow = window.innerWidth < 640;
    return {
      background: null,
      font: getComputedStyle(document.body).fontFamily,
      axis: { labelColor: soft, titleColor: soft, domainColor: soft, tickColor: soft, gridColor: line, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", titlePadding: 8, labelLimit: narrow ? 120 : 260 },
      legend: { labelColor: text, titleColor: soft, labelFontSize: 12.5, titleFontSize: 12, titleFontWeight: "normal", orient: "top", columns: narrow ? 1 : 3, labelLimit: narrow ? 280 : 420, symbolSize: 110, symbolStrokeWidth: 2.25 },
      view: { stroke: null },
    };
  }

  async function draw() {
    const styles = getComputedStyle(root);
    const config = themed(styles);
    for (const [id, chart] of Object.entries(charts)) {
      const old = views.get(id);
      const options = { ast: true, actions: false, renderer: "svg", config, tooltip: { theme: "custom" } };
      const made = await window.vegaEmbed("#" + id, coloured(chart.spec, styles), options);
      if (old) old.finalize();
      views.set(id, made);
      // The chart's element is one image with a text alternative; its parts are not to be read one by one.
      document.querySelector("#" + id + " svg").setAttribute("aria-hidden", "true");
    }
    root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
  }
  let drawing = Promise.resolve();
  const redraw = () => { drawing = drawing.then(draw); return drawing; };

  // ---- theme

  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  function setTheme(dark) {
    root.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    redraw();
  }
  button.addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));
  system.addEventListener("change", (event) => setTheme(event.matches));
  // Charts in closed or narrow places measure their width when the window changes; nothing else has to be done.
  setTheme(system.matches);

  // ---- tables that sort

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const name = head.textContent;
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.textContent = name;
      head.replaceChildren(sorter);
      sorter.addEventListener("click", () => {
        const numeric = !["item", "kind", "known worth"].includes(name);
        const rising = head.getAttribute("aria-sort") === (numeric ? "descending" : null) || (!numeric && head.getAttribute("aria-sort") !== "ascending");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", rising ? "ascending" : "descending");
        const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
        const compare = numeric ? (a, b) => Number(key(a)) - Number(key(b)) : (a, b) => key(a).localeCompare(key(b));
        const rows = [...table.tBodies[0].rows].sort(rising ? compare : (a, b) => compare(b, a));
        table.tBodies[0].append(...rows);
      });
    });
  }

  // ---- rollouts: tokens coloured by their gap under the chosen teacher

  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);
  const classOf = (level) => (level > 0 ? "p" + level : level < 0 ? "n" + -level : "");

  function paragraph(name, text) {
    const made = document.createElement("p");
    const strong = document.createElement("strong");
    strong.textContent = name + ": ";
    made.append(strong, text);
    return made;
  }

  function fill(rollout) {
    const box = document.getElementById(rollout.id);
    if (box.dataset.filled) return;
    box.dataset.filled = "true";
    const [select, about, list, detail] = ["select", ".about", ".tokens", ".detail"].map((what) => box.querySelector(what));
    const spans = rollout.tokens.map((text, index) => {
      const span = document.createElement("span");
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.tabIndex = index === 0 ? 0 : -1;
      span.textContent = text === "" ? "·" : text.replace(/\n/g, "⏎\n");
      return span;
    });
    list.append(...spans);
    const chosen = () => rollout.teachers[Number(select.value)];
    const said = (index) => {
      const gap = chosen().gaps[index];
      const counts = rollout.counted[index] ? "" : ", does not count";
      return `gap ${signed(gap)} nats, student ${signed(rollout.logps[index])}, teacher ${signed(rollout.logps[index] + gap)}${counts}`;
    };
    const spoken = (index) => `${rollout.tokens[index].replace(/\n/g, " newline ").trim() || "blank"}: ${said(index)}`;
    function show(index) {
      detail.textContent = `Token ${index + 1} of ${spans.length}, “${rollout.tokens[index].replace(/\n/g, "⏎")}”: ${said(index)}`;
    }
    function focus(index) {
      const next = Math.max(0, Math.min(spans.length - 1, index));
      spans.forEach((span, position) => {
        span.tabIndex = position === next ? 0 : -1;
        span.setAttribute("aria-selected", String(position === next));
      });
      spans[next].focus();
      show(next);
    }
    function colour() {
      const teacher = chosen();
      spans.forEach((span, index) => {
        span.className = ("token " + (rollout.counted[index] ? classOf(teacher.levels[index]) : "uncounted")).trim();
        span.setAttribute("aria-label", spoken(index));
        span.title = said(index);
      });
      about.replaceChildren(
        paragraph("Skill", teacher.skill),
        paragraph("Mistake", teacher.mistake),
        paragraph("Support", `${teacher.support} nats per token: ${teacher.stance}, polarity ${teacher.polarity}, weight ${teacher.weight}`),
      );
      detail.textContent = "";
    }
    list.addEventListener("keydown", (event) => {
      const at = spans.indexOf(document.activeElement);
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: spans.length - 1 };
      if (at < 0 || !(event.key in moves)) return;
      event.preventDefault();
      focus(moves[event.key]);
    });
    list.addEventListener("click", (event) => { const at = spans.indexOf(event.target); if (at >= 0) focus(at); });
    list.addEventListener("pointerover", (event) => { const at = spans.indexOf(event.target); if (at >= 0) show(at); });
    list.addEventListener("focusin", (event) => { const at = spans.indexOf(event.target); if (at >= 0) show(at); });
    select.addEventListener("change", colour);
    colour();
  }

  for (const rollout of read("traces")) {
    const box = document.getElementById(rollout.id);
    if (box.open) fill(rollout);
    box.addEventListener("toggle", () => { if (box.open) fill(rollout); });
  }
})();
