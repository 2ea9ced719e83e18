// Draws the report from the JSON in #data. Text reaches the page as text nodes and properties only,
// never as HTML, and nothing is loaded. What is chosen stands in the address after the #, so that
// a view can be bookmarked and the Back button works.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const rows = data.rows.map((row) => ({ ...data.common, ...row }));
const PAGE = 120; // images added at a time
const FACET_VALUES = 6; // values of a filter before "Show all"
const CHART_VALUES = 25;

const $ = (id) => document.getElementById(id);
const format = (number) => number.toLocaleString("en-US");

/** An element with properties and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ------------------------------------------------------------------------------------- state

const VIEWS = [...document.querySelectorAll(".view")].map((view) => view.id);
const facets = data.axes.map((axis) => ({
  ...axis,
  of: axis.key === "set" ? (row) => row.prompt_set : (row) => row.slots[axis.key.slice(5)] ?? "",
  chosen: new Set(),
}));
const state = { view: "gallery", query: "", reference: false };
let matching = rows; // what the gallery shows
let drawn = 0; // so many of them have a tile
let album = []; // what the lightbox steps through
let place = 0;

for (const row of rows) row.lower = row.text.toLowerCase();

function matches(row, exceptFacet = null) {
  if (state.reference && !row.reference) return false;
  if (!state.query.toLowerCase().split(/\s+/).every((word) => row.lower.includes(word))) return false;
  return facets.every((f) => f === exceptFacet || !f.chosen.size || f.chosen.has(f.of(row)));
}

function readAddress() {
  const address = new URLSearchParams(location.hash.slice(1));
  state.view = VIEWS.includes(address.get("view")) ? address.get("view") : "gallery";
  state.query = address.get("q") ?? "";
  state.reference = address.get("reference") === "1";
  for (const facet of facets) facet.chosen = new Set(address.getAll(facet.key));
  showAll();
  const image = rows.findIndex((row) => row.id === address.get("image"));
  if (image >= 0) open(matching.includes(rows[image]) ? matching : rows, rows[image]);
  else if ($("lightbox").open) $("lightbox").close();
}

function writeAddress(step = false) {
  const address = new URLSearchParams();
  if (state.view !== "gallery") address.set("view", state.view);
  if (state.query) address.set("q", state.query);
  if (state.reference) address.set("reference", "1");
  for (const facet of facets) for (const value of facet.chosen) address.append(facet.key, value);
  if ($("lightbox").open) address.set("image", album[place].id);
  if (address.toString() === location.hash.slice(1)) return;
  history[step ? "pushState" : "replaceState"](null, "", "#" + address);
}

function change(step = false) {
  showAll();
  writeAddress(step);
}

/** Show the gallery with exactly these values chosen: [[facet key, value], ...]. */
function filterTo(choices) {
  clear();
  for (const [key, value] of choices) facets.find((f) => f.key === key).chosen.add(value);
  state.view = "gallery";
  change(true);
  scrollTo({ top: Math.min(scrollY, document.querySelector(".views").offsetTop) });
}

function clear() {
  Object.assign(state, { query: "", reference: false });
  for (const facet of facets) facet.chosen.clear();
}

function showAll() {
  for (const id of VIEWS) $(id).hidden = id !== state.view;
  for (const link of document.querySelectorAll(".views a")) {
    link.ariaCurrent = link.dataset.view === state.view ? "page" : null;
  }
  if ($("query").value !== state.query) $("query").value = state.query;
  $("reference").checked = state.reference;
  matching = rows.filter((row) => matches(row));
  $("count").textContent =
    matching.length === rows.length
      ? `${format(rows.length)} images`
      : `${format(matching.length)} of ${format(rows.length)} images`;
  showFacets();
  showChips();
  $("grid").replaceChildren();
  $("nothing").hidden = matching.length > 0;
  drawn = 0;
  more();
}

// ----------------------------------------------------------------------------------- gallery

function tile(row, list) {
  const image = make("img", { loading: "lazy", decoding: "async", alt: row.text });
  if (row.thumbnail) image.src = row.thumbnail;
  const words = make("span", { className: "words" }, row.text);
  words.setAttribute("aria-hidden", "true"); // the image's alt says it already
  const button = make("button", { type: "button", className: "tile" }, image, words);
  button.dataset.id = row.id;
  button.onclick = () => open(list ?? matching, row);
  return button;
}

function more() {
  $("grid").append(...matching.slice(drawn, drawn + PAGE).map((row) => tile(row)));
  drawn += PAGE;
  $("more").hidden = drawn >= matching.length;
  watcher.disconnect(); // watching anew reports once more, should the button still be in sight
  if (!$("more").hidden) watcher.observe($("more"));
}

const watcher = new IntersectionObserver(
  (entries) => entries.some((entry) => entry.isIntersecting) && more(),
  { rootMargin: "500px" },
);

function buildFacet(facet) {
  const values = facet.counts.filter(([, count]) => count).map(([value]) => value);
  if (facet.without) values.push("");
  facet.options = values.map((value) => {
    const box = make("input", { type: "checkbox" });
    const count = make("span", { className: "num" });
    const label = make("label", { title: value }, box,
      make("span", { className: "value" }, value || `no ${facet.label}`), count);
    box.onchange = () => {
      facet.chosen[box.checked ? "add" : "delete"](value);
      change();
    };
    return { value, box, count, label };
  });
  const group = make("fieldset", { className: "facet" }, make("legend", {}, facet.label),
    ...facet.options.map((option) => option.label));
  if (values.length > FACET_VALUES + 2) {
    facet.folded = true;
    facet.button = make("button", { type: "button", className: "all" });
    facet.button.onclick = () => {
      facet.folded = !facet.folded;
      showFacets();
    };
    group.append(facet.button);
  }
  return group;
}

function showFacets() {
  for (const facet of facets) {
    const counts = new Map();
    for (const row of rows) {
      if (matches(row, facet)) counts.set(facet.of(row), (counts.get(facet.of(row)) ?? 0) + 1);
    }
    const largest = Math.max(1, ...counts.values());
    facet.options.forEach(({ value, box, count, label }, number) => {
      const images = counts.get(value) ?? 0;
      box.checked = facet.chosen.has(value);
      count.textContent = format(images);
      label.classList.toggle("none", !images);
      label.style.setProperty("--share", images / largest);
      label.hidden = Boolean(facet.folded) && number >= FACET_VALUES && !box.checked;
    });
    if (facet.button) {
      facet.button.textContent = facet.folded ? `Show all ${facet.options.length}` : "Show fewer";
      facet.button.setAttribute("aria-expanded", String(!facet.folded));
    }
  }
}

function showChips() {
  const chips = facets.flatMap((facet) =>
    [...facet.chosen].map((value) => {
      const chip = make("button", { type: "button" }, value || `no ${facet.label}`);
      chip.setAttribute("aria-label", `Remove the filter ${facet.label}: ${value || "none"}`);
      chip.onclick = () => {
        facet.chosen.delete(value);
        change();
      };
      return chip;
    }),
  );
  $("chips").replaceChildren(...chips);
  $("clear").hidden = !(chips.length || state.query || state.reference);
}

// ---------------------------------------------------------------------------------- lightbox

function open(list, row) {
  album = list;
  place = list.indexOf(row);
  if (!$("lightbox").open) $("lightbox").showModal();
  showImage();
}

function step(by) {
  place = (place + by + album.length) % album.length;
  showImage();
}

function showImage() {
  const row = album[place];
  $("lightbox-image").src = row.thumbnail ?? "";
  $("lightbox-image").alt = row.text;
  $("lightbox-text").textContent = row.text;
  $("position").textContent = `${format(place + 1)} of ${format(album.length)}`;
  const cells = data.columns.flatMap((name) =>
    row[name] && typeof row[name] === "object"
      ? Object.entries(row[name]).map(([part, value]) => [`${name}.${part}`, value])
      : [[name, row[name]]]);
  $("metadata").replaceChildren(...cells.map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, String(value ?? "") || "–"))));
  writeAddress();
}

async function copy(text, button) {
  button.dataset.label ??= button.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text }); // inside the dialog, which keeps the focus
    $("lightbox").append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = button.dataset.label), 1200);
}

// ---------------------------------------------------------------------------------- coverage

function chart(axis) {
  const counts = axis.counts.map(([, count]) => count);
  // Prompt sets have the shares that the recipe gives them; an even share means nothing there.
  const even = axis.key !== "set" && counts.reduce((sum, count) => sum + count, 0) / counts.length;
  const most = Math.max(counts[0], 1);
  const bars = axis.counts.map(([value, count], number) => {
    const track = make("span", { className: even ? "track even" : "track" }, make("i"));
    track.style.setProperty("--share", count / most);
    track.style.setProperty("--even", even / most);
    const bar = make("button", { type: "button", className: "row", title: value },
      make("span", { className: "value" }, value), track,
      make("span", { className: "num" }, format(count)));
    bar.classList.toggle("unused", count === 0);
    bar.onclick = () => filterTo([[axis.key, value]]);
    return make("li", { hidden: number >= CHART_VALUES }, bar);
  });
  const note =
    `${format(counts.length)} values, fewest ${format(counts.at(-1))}, most ${format(counts[0])}` +
    (even ? `, even share ${format(Math.round(even * 10) / 10)}` : "") +
    (axis.without ? `; ${format(axis.without)} images have none` : "");
  const all = make("button", { type: "button", className: "all" }, `Show all ${bars.length}`);
  all.hidden = bars.length <= CHART_VALUES;
  all.onclick = () => {
    for (const bar of bars) bar.hidden = false;
    all.hidden = true;
  };
  return make("section", { className: "chart" }, make("h3", {}, axis.label),
    make("p", { className: "soft" }, note), make("ol", {}, ...bars), all);
}

function showHeat() {
  const [a, b] = [data.axes[$("axis-a").value], data.axes[$("axis-b").value]];
  const turned = data.pairs[`${b.key}|${a.key}`];
  const table = data.pairs[`${a.key}|${b.key}`] ??
    turned?.[0].map((_, column) => turned.map((line) => line[column]));
  if (!table) {
    $("heat").replaceChildren();
    $("heat-note").textContent = "Choose two different ones.";
    return;
  }
  const [lines, columns] = [a.counts.slice(0, table.length), b.counts.slice(0, table[0].length)];
  const all = table.flat();
  const most = Math.max(1, ...all);
  const never = all.filter((count) => !count).length;
  $("heat-note").textContent =
    `most ${format(most)}; ${format(never)} of ${format(all.length)} pairs never meet` +
    (all.length < a.counts.length * b.counts.length ? "; the most frequent values are shown" : "");
  const head = make("tr", {}, make("th"),
    ...columns.map(([value]) => make("th", { scope: "col", title: value }, make("span", {}, value))));
  const body = lines.map(([first], i) =>
    make("tr", {}, make("th", { scope: "row", title: first }, first), ...columns.map(([second], j) => {
      const count = table[i][j];
      const cell = make("td", { title: `${first} + ${second}: ${format(count)}` }, String(count));
      cell.className = count === 0 ? "zero" : count / most > 0.6 ? "hot" : "";
      cell.style.setProperty("--heat", count / most);
      cell.onclick = () => filterTo([[a.key, first], [b.key, second]]);
      return cell;
    })));
  $("heat").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
}

// ------------------------------------------------------------------- duplicates and refused

const pairCard = (left, right, ...words) =>
  make("div", { className: "pair" }, left, right, make("p", {}, ...words));

const nothing = (words) => make("p", { className: "empty" }, words);

function refusedCard({ id, text, reasons, attempts, thumbnail }) {
  const image = make(thumbnail ? "img" : "div", { className: "shot" });
  if (thumbnail) Object.assign(image, { src: thumbnail, alt: text, loading: "lazy" });
  return make("div", { className: "card" }, image, make("p", {}, text),
    make("p", { className: "soft" }, `${reasons.join("; ")} (attempts: ${attempts})`),
    make("code", {}, id));
}

function showRefused() {
  const kinds = Object.entries(data.rejectedKinds).sort((x, y) => y[1] - x[1]);
  for (const [kind, count] of kinds) {
    const members = data.rejected.filter((refused) => refused.kinds.includes(kind));
    const number = make("span", { className: "soft" }, format(count));
    $("rejected").append(make("h3", { className: "reason" }, kind, number),
      make("div", { className: "grid" }, ...members.map(refusedCard)));
  }
  const left = data.rejectedTotal - data.rejected.length;
  if (left) $("rejected").append(nothing(`${format(left)} more are not shown.`));
  if (!kinds.length) $("rejected").append(nothing("None."));
}

function showDuplicates() {
  const closest = data.closest.map(([first, second, bits]) => {
    const both = [rows[first], rows[second]];
    return pairCard(tile(both[0], both), tile(both[1], both), make("b", {}, `${bits} of 64 bits`), " differ");
  });
  const copies = data.rejected.filter((refused) => refused.original !== null).map((refused) => {
    const kept = rows[refused.original];
    return pairCard(tile(kept, [kept]), refusedCard(refused), "Kept, refused");
  });
  $("closest").append(...(closest.length ? closest : [nothing("No distances were measured.")]));
  $("copies").append(...(copies.length ? copies : [nothing("None, or their originals are not shown.")]));
}

// ------------------------------------------------------------------------------------- start

$("facets").append(...facets.map(buildFacet));
$("filters").open = matchMedia("(min-width: 60rem)").matches;
$("reference-label").hidden = !rows.some((row) => row.reference);
if (rows.length < data.total) {
  $("sample").hidden = false;
  $("sample").textContent = `Showing ${format(rows.length)} of ${format(data.total)} images, an even ` +
    "sample over prompt sets and phrases. Coverage counts all of them.";
}
$("charts").append(...data.axes.map(chart));
for (const id of ["axis-a", "axis-b"]) {
  $(id).append(...data.axes.map((axis, number) => make("option", { value: number }, axis.label)));
  $(id).onchange = showHeat;
}
const richest = data.axes.map((axis, number) => number)
  .sort((x, y) => data.axes[y].counts.length - data.axes[x].counts.length);
if (richest.length > 1) {
  [$("axis-b").value, $("axis-a").value] = richest;
  showHeat();
}
showRefused();
showDuplicates();

document.querySelector(".views").onclick = (event) => {
  if (!event.target.closest("a")) return;
  event.preventDefault(); // the link alone would forget the filters
  state.view = event.target.closest("a").dataset.view;
  change(true);
};
$("query").oninput = () => {
  state.query = $("query").value;
  change();
};
$("reference").onchange = () => {
  state.reference = $("reference").checked;
  change();
};
$("clear").onclick = () => filterTo([]);
$("more").onclick = more;
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("close").onclick = () => $("lightbox").close();
$("copy-text").onclick = (event) => copy(album[place].text, event.target);
$("copy-seed").onclick = (event) => copy(String(album[place].seed), event.target);
$("lightbox").onclick = (event) => event.target === $("lightbox") && $("lightbox").close();
$("lightbox").onclose = () => writeAddress();
$("lightbox").onkeydown = (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
};
addEventListener("hashchange", readAddress);
readAddress();
