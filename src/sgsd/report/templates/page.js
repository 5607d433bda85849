"use strict";

// ---- tables that sort: a column of figures by value, any other by its texts

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sorter = document.createElement("button");
    sorter.type = "button";
    sorter.textContent = head.textContent;
    head.replaceChildren(sorter);
    sorter.addEventListener("click", () => {
      const text = (row) => row.cells[column].textContent.trim();
      const value = (row) => (text(row) === "–" ? -Infinity : parseFloat(text(row).replace("−", "-")));
      const rows = [...table.tBodies[0].rows];
      const figures = column > 0 && !rows.some((row) => Number.isNaN(value(row)));
      const before = head.getAttribute("aria-sort");
      const falling = before === "ascending" || (before === null && figures);
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      rows.sort((a, b) => (figures ? value(a) - value(b) : text(a).localeCompare(text(b))));
      table.tBodies[0].append(...(falling ? rows.reverse() : rows));
    });
  });
}

// ---- rollouts: tokens coloured by their gap under the chosen teacher

const { levels, rollouts } = JSON.parse(document.getElementById("traces").textContent);
// A number that is not finite is null in JSON.
const signed = (value) => value === null ? "–" : (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(3);

function colourOf(gap) {
  const level = levels.filter((least) => Math.abs(gap) >= least).length;
  return level === 0 ? "" : (gap > 0 ? "p" : "n") + level;
}

function paragraph(name, text) {
  const made = document.createElement("p");
  const strong = document.createElement("strong");
  strong.textContent = name + ": ";
  made.append(strong, text);
  return made;
}

function fill(box, rollout) {
  const [select, about, list, detail] = ["select", ".about", ".tokens", ".detail"].map((part) => box.querySelector(part));
  const spans = rollout.tokens.map((text) => {
    const span = document.createElement("span");
    span.setAttribute("role", "option");
    span.textContent = text === "" ? "·" : text.replace(/\n/g, "⏎\n");
    return span;
  });
  list.append(...spans);
  const teacher = () => rollout.teachers[Number(select.value)];
  const said = (index) => {
    const [gap, student] = [teacher().gaps[index], rollout.student_logps[index]];
    return `gap ${signed(gap)} nats, student ${signed(student)}, teacher ${signed(gap === null || student === null ? null : student + gap)}${rollout.counted[index] ? "" : ", does not count"}`;
  };
  const show = (event) => {
    const index = spans.indexOf(event.target);
    if (index >= 0) detail.textContent = `Token ${index + 1} of ${spans.length}, “${rollout.tokens[index].replace(/\n/g, "⏎")}”: ${said(index)}`;
  };
  // One stop for the Tab key: the arrow keys move among the tokens.
  const choose = (index) => spans.forEach((span, position) => {
    span.tabIndex = position === index ? 0 : -1;
    span.setAttribute("aria-selected", String(position === index));
  });
  const colour = () => {
    spans.forEach((span, index) => {
      span.className = ("token " + (rollout.counted[index] ? colourOf(teacher().gaps[index]) : "uncounted")).trim();
      span.setAttribute("aria-label", `${rollout.tokens[index].replace(/\n/g, " newline ").trim() || "blank"}: ${said(index)}`);
    });
    about.replaceChildren(...["skill", "mistake", "support"].map((part) => paragraph(part[0].toUpperCase() + part.slice(1), teacher()[part])));
    detail.textContent = "";
  };
  list.addEventListener("keydown", (event) => {
    const at = spans.indexOf(document.activeElement);
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + 10, ArrowUp: at - 10, Home: 0, End: spans.length - 1 };
    if (at < 0 || !(event.key in moves)) return;
    event.preventDefault();
    spans[Math.max(0, Math.min(spans.length - 1, moves[event.key]))].focus();
  });
  list.addEventListener("click", (event) => { if (spans.includes(event.target)) event.target.focus(); });
  list.addEventListener("focusin", (event) => { if (spans.includes(event.target)) choose(spans.indexOf(event.target)); });
  for (const name of ["focusin", "pointerover"]) list.addEventListener(name, show);
  select.addEventListener("change", colour);
  choose(0);
  colour();
}

for (const rollout of rollouts) {
  const box = document.getElementById(rollout.id);
  const once = () => {
    if (!box.open || box.dataset.filled) return;
    box.dataset.filled = "true";
    fill(box, rollout);
  };
  box.addEventListener("toggle", once);
  once();
}
