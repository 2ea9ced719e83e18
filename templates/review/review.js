// Going through images by eye. What captions and people say reaches the page as text nodes and
// properties only, never as HTML. Only the cells in sight are in the document.
"use strict";

const REASONS = ["looks like the subject", "does not show its caption", "broken shapes", "text or a watermark", "blurred or ugly"];
const LOOKALIKES = 5;
const POLL = 1500; // milliseconds between looks at what other pages decided
const SETTLED = 60; // milliseconds without scrolling before new thumbnails are asked for

const $ = (id) => document.getElementById(id);
const format = (number) => number.toLocaleString("en-US");
const keyOf = (row) => row.key ?? `${row.id} ${row.image ?? ""}`;

/** An element with properties and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ------------------------------------------------------------------------------ what is known

let page = { version: "", rows: [], slots: [], run: false };
let position = new Map(); // of a key among the rows
let decisions = []; // all of the file
let waiting = []; // made here, not written down yet
let marks = new Map(); // key -> the decision to keep or reject
let captions = new Map(); // key -> the decision about the caption
let replaced = new Map(); // id -> decisions that rejected an image which is gone
let subject = { photos: [], nearness: [] };

let shown = []; // the rows that the filters leave, in order
let cursor = 0; // in `shown`
let anchor = 0; // where a range begins
let selected = new Set(); // keys
let single = false;

/** The later decision counts, and one that was undone does not; as in regforge/dataset/decisions.py. */
function fold() {
  const undone = new Set(decisions.flatMap((each) => each.undoes ?? []));
  marks = new Map();
  captions = new Map();
  replaced = new Map();
  for (const each of [...decisions.filter((each) => !undone.has(each.n)), ...waiting]) {
    const key = keyOf(each);
    if (each.do === "keep" || each.do === "reject") marks.set(key, each);
    else if (each.do === "caption") captions.set(key, each);
  }
  for (const [key, each] of marks) {
    if (each.do !== "reject" || position.has(key)) continue;
    replaced.set(each.id, [...(replaced.get(each.id) ?? []), each]);
  }
}

function stateOf(row) {
  const mark = marks.get(keyOf(row));
  return mark?.do === "reject" ? "reject" : isChanged(row) ? "caption" : mark ? "keep" : "open";
}

function isChanged(row) {
  const caption = captions.get(keyOf(row));
  return Boolean(caption) && caption.text !== row.text;
}

const textOf = (row) => captions.get(keyOf(row))?.text ?? row.text;

async function get(path) {
  const reply = await fetch(path, { cache: "no-store" });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

async function load() {
  const found = await get("images.json");
  const here = shown[cursor]?.id;
  page = found;
  position = new Map();
  page.rows.forEach((row, number) => {
    row.number = number;
    row.key = keyOf(row);
    row.lower = row.text.toLowerCase();
    row.high = parseInt(row.hash.slice(0, 8), 16);
    row.low = parseInt(row.hash.slice(8), 16);
    position.set(keyOf(row), number);
  });
  subject = { photos: [], nearness: [] };
  document.title = `${page.name} · regforge review`;
  $("name").textContent = page.name;
  const before = page.run && !page.rows.length;
  $("vocabulary").hidden = !before;
  document.querySelector("[data-do=seed]").hidden = !page.run; // there is nothing to draw with
  $("filters").hidden = $("grid").hidden = $("count").hidden = before;
  document.querySelector(".work").classList.toggle("before", before);
  if (before) return loadPhrases();
  fillFacets();
  fold();
  filter(here);
}

async function poll() {
  try {
    const after = decisions.length ? decisions[decisions.length - 1].n : 0;
    const found = await get(`decisions?after=${after}`);
    $("alert").hidden = true;
    if (found.decisions.length) take(found.decisions);
    if (found.version !== page.version) await load();
  } catch (error) {
    const gone = "The server does not answer. What you decide now is not written down; start it again: regforge review";
    alertAbout(error instanceof TypeError ? gone : error.message);
  }
}

function alertAbout(text) {
  $("alert").textContent = text;
  $("alert").hidden = false;
}

function take(more) {
  const last = decisions.length ? decisions[decisions.length - 1].n : 0;
  decisions.push(...more.filter((each) => each.n > last));
  fold();
  draw();
}

// ------------------------------------------------------------------------------ deciding

let queue = Promise.resolve();

/** Have decisions written down, one action after the other; they show at once. */
function decide(wanted, said) {
  waiting.push(...wanted);
  fold();
  draw();
  const sent = queue.then(() => send(wanted, said));
  queue = sent.catch(() => {});
  return sent;
}

async function send(wanted, said) {
  let problem = "The server does not answer";
  try {
    const after = decisions.length ? decisions[decisions.length - 1].n : 0;
    const reply = await fetch(`decisions?after=${after}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wanted.map(({ id, image, undoes, text, reason, redraw, do: what }) => ({ do: what, id, image, undoes, text, reason, redraw }))),
    });
    if (!reply.ok) problem = await reply.text();
    if (!reply.ok) throw new Error(problem);
    waiting = waiting.filter((each) => !wanted.includes(each));
    take((await reply.json()).decisions);
    $("status").textContent = said;
  } catch (error) {
    waiting = waiting.filter((each) => !wanted.includes(each));
    fold();
    draw();
    alertAbout(`Not written down: ${problem}`);
    throw error;
  }
}

/** The images that a decision is about: the selected ones, else the current one. */
function targets() {
  if (selected.size) return shown.filter((row) => selected.has(keyOf(row)));
  return shown[cursor] ? [shown[cursor]] : [];
}

function mark(what, reason = "", rows = targets()) {
  if (!rows.length) return;
  const several = selected.size > 0 || rows.length > 1;
  const verb = what === "keep" ? "Kept" : "Rejected";
  const about = rows.length > 1 ? ` ${format(rows.length)} images` : `: ${rows[0].text}`;
  decide(rows.map((row) => ({ do: what, id: row.id, image: row.image, reason })), `${verb}${about}${reason ? ` (${reason})` : ""}`).catch(() => {});
  selected.clear();
  if (several) draw();
  else move(cursor + 1);
}

function undo() {
  queue.then(() => {
    const undone = new Set(decisions.flatMap((each) => each.undoes ?? []));
    const left = decisions.filter((each) => each.do !== "undo" && !undone.has(each.n));
    if (!left.length) return void ($("status").textContent = "Nothing to undo.");
    const at = left[left.length - 1].at; // those of one action have the same time
    const last = left.filter((each) => each.at === at);
    const there = shown.findIndex((row) => row.id === last[0].id);
    decide([{ do: "undo", undoes: last.map((each) => each.n) }], `Undone: ${last[0].do}, ${last.length > 1 ? `${format(last.length)} images` : last[0].was}`).catch(() => {});
    if (there >= 0) move(there);
  });
}

function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue), { once: true }));
}

async function askWhy() {
  const rows = targets();
  if (!rows.length) return;
  $("reason").value = "";
  const answer = await ask($("why"));
  if (answer) mark("reject", REASONS[Number($("reason").value) - 1] ?? $("reason").value.trim(), rows);
}

let captioned = null; // the row whose caption is edited

async function askCaption() {
  const row = captioned = shown[cursor];
  if (!row) return;
  $("text").value = textOf(row);
  $("edit-error").textContent = "";
  $("redraw").hidden = !page.run;
  $("edit").showModal();
  $("text").select();
}

async function saveCaption(redraw) {
  const row = captioned, text = $("text").value.trim(), before = captions.get(keyOf(row));
  if (!position.has(keyOf(row))) return void ($("edit-error").textContent = "A run has replaced this image meanwhile.");
  if (!text || (text === textOf(row) && (!before || Boolean(before.redraw) === redraw))) return $("edit").close();
  try {
    await decide([{ do: "caption", id: row.id, image: row.image, text, redraw }], redraw ? "Drawn anew by the next run" : "Caption corrected");
    $("edit").close();
  } catch {
    $("edit-error").textContent = $("alert").textContent;
    $("alert").hidden = true;
  }
}

async function rejectAll() {
  const rows = shown.filter((row) => marks.get(keyOf(row))?.do !== "reject");
  if (!rows.length) return;
  const phrase = [$("query").value.trim().replaceAll('"', ""), ...facetValues().map(([, value]) => value)].filter(Boolean).join(", ");
  $("sure-title").textContent = `Reject ${format(rows.length)} ${rows.length === 1 ? "image" : "images"}${phrase ? ` with “${phrase}”` : ""}?`;
  if (await ask($("sure"))) mark("reject", phrase, rows);
}

// ------------------------------------------------------------------------------ which images

function fillFacets() {
  const chosen = new Map(facetValues());
  const axes = [["set", (row) => row.set], ...page.slots.map((slot) => [slot, (row) => row.slots[slot]])];
  $("facets").replaceChildren(...axes.flatMap(([name, of]) => {
    const counts = new Map();
    for (const row of page.rows) if (of(row)) counts.set(of(row), (counts.get(of(row)) ?? 0) + 1);
    if (!counts.size) return [];
    const options = [...counts].sort((x, y) => y[1] - x[1] || (x[0] < y[0] ? -1 : 1));
    const select = make("select", { name }, make("option", { value: "" }, "all"),
      ...options.map(([value, count]) => make("option", { value }, `${value} (${format(count)})`)));
    select.value = counts.has(chosen.get(name)) ? chosen.get(name) : "";
    return [make("label", {}, name.replaceAll("_", " "), select)];
  }));
  $("below-label").hidden = !page.rows.some((row) => row.alignment !== null);
  $("near-label").hidden = !page.rows.some((row) => row.distance !== null);
}

const facetValues = () => [...$("facets").querySelectorAll("select")].filter((each) => each.value).map((each) => [each.name, each.value]);

function filter(here = shown[cursor]?.id) {
  const words = [...$("query").value.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map((found) => found[1] ?? found[0]);
  const state = $("state").value, facets = facetValues();
  const below = parseFloat($("below").value), near = parseFloat($("near").value);
  shown = page.rows.filter((row) =>
    words.every((word) => row.lower.includes(word)) &&
    facets.every(([name, value]) => (name === "set" ? row.set : row.slots[name]) === value) &&
    (!state || (state === "replaced" ? replaced.has(row.id) : stateOf(row) === state)) &&
    (Number.isNaN(below) || (row.alignment !== null && row.alignment < below)) &&
    (Number.isNaN(near) || (row.distance !== null && row.distance <= near)));
  const by = {
    alignment: (row) => row.alignment ?? 2,
    duplicates: (row) => row.distance ?? 65,
    subject: (row) => subject.nearness[row.number] ?? 65,
  }[$("order").value];
  if (by) shown.sort((x, y) => by(x) - by(y) || x.number - y.number);
  const there = new Set(shown.map(keyOf));
  selected = new Set([...selected].filter((key) => there.has(key)));
  cursor = Math.max(0, shown.findIndex((row) => row.id === here));
  anchor = cursor;
  drawn = "";
  draw();
  reveal();
}

async function findSubject() {
  if (subject.nearness.length || !page.run) return;
  subject = await get("subject.json");
}

/** In how many bits two perceptual hashes differ. */
function bits(one, other) {
  let count = 0;
  for (let left of [one.high ^ other.high, one.low ^ other.low]) for (; left; left &= left - 1) count++;
  return count;
}

function lookalikes(row) {
  if (!row.hash) return [];
  return page.rows.filter((other) => other !== row && other.hash)
    .map((other) => [bits(row, other), other]).sort((x, y) => x[0] - y[0]).slice(0, LOOKALIKES);
}

// ------------------------------------------------------------------------------ the grid

const cells = new Map(); // place in `shown` -> its element
const seen = new Set(); // addresses of thumbnails that came before
let columns = 1, size = 170, drawn = "";
let settled = -Infinity; // when it was scrolled last

const thumbnail = (row) => `thumbnail/${page.version}/${row.number}`;

/** Show the state of everything; cheap enough for every key. */
function draw() {
  if (!page.rows.length) return;
  const counts = { keep: 0, reject: 0, caption: 0, open: 0 };
  for (const row of page.rows) counts[stateOf(row)]++;
  $("progress").textContent = `${format(page.rows.length - counts.open)} of ${format(page.rows.length)} decided: ${format(counts.keep)} kept, ${format(counts.reject)} rejected, ${format(counts.caption)} with another caption`;
  $("count").textContent = `${format(shown.length)} shown${selected.size ? `, ${format(selected.size)} selected` : ""}${shown[cursor] && !single ? ` · ${textOf(shown[cursor])}` : ""}`;
  $("next").textContent = counts.reject || counts.caption ? page.next : "";
  $("single").hidden = !single;
  $("grid").hidden = single;
  if (single) drawSingle();
  else drawGrid();
}

function drawGrid() {
  const grid = $("grid"), width = grid.clientWidth;
  columns = Math.max(2, Math.floor(width / 165));
  size = Math.floor(width / columns);
  const height = size + 18, count = Math.ceil(shown.length / columns);
  $("sheet").style.height = `${count * height}px`;
  $("sheet").style.setProperty("--width", `${size}px`);
  $("sheet").style.setProperty("--height", `${height}px`);
  const first = Math.max(0, Math.floor(grid.scrollTop / height) - 1) * columns;
  const last = Math.min(shown.length, (Math.ceil((grid.scrollTop + grid.clientHeight) / height) + 1) * columns);
  const spare = [];
  for (const [place, cell] of cells) {
    if (place >= first && place < last) continue;
    cells.delete(place);
    spare.push(cell);
  }
  for (let place = first; place < last; place++) {
    let cell = cells.get(place);
    if (!cell) {
      cell = spare.pop() ?? newCell();
      cells.set(place, cell);
    }
    drawCell(cell, place, height);
  }
  for (const cell of spare) cell.remove();
  const active = cells.get(cursor);
  if (active) grid.setAttribute("aria-activedescendant", active.id);
  else grid.removeAttribute("aria-activedescendant");
}

let made = 0;
function newCell() {
  const cell = make("div", { className: "cell", id: `cell-${made++}` }, make("img", { alt: "", decoding: "async" }), make("span", {}, " "));
  cell.setAttribute("role", "option");
  $("sheet").append(cell);
  return cell;
}

function drawCell(cell, place, height) {
  const row = shown[place], [image, words] = cell.children, state = stateOf(row), text = textOf(row);
  const key = keyOf(row), address = thumbnail(row), reason = marks.get(key)?.reason ?? "";
  // What a cell shows is written only where it has changed: that is what scrolling costs.
  const look = [place, columns, size, shown.length, key, state, reason, text, place === cursor, selected.has(key)].join("\n");
  if (cell.look !== look) {
    cell.look = look;
    cell.style.transform = `translate(${(place % columns) * size}px, ${Math.floor(place / columns) * height}px)`;
    words.firstChild.data = text;
    cell.dataset.id = row.id;
    cell.dataset.do = state;
    cell.classList.toggle("current", place === cursor);
    cell.setAttribute("aria-selected", selected.has(key));
    cell.setAttribute("aria-label", `${text}. ${{ open: "Not decided", keep: "Kept", reject: `Rejected ${reason}`, caption: "Caption changed" }[state]}`);
    cell.setAttribute("aria-posinset", place + 1);
    cell.setAttribute("aria-setsize", shown.length);
  }
  if (image.dataset.src === address) return;
  image.dataset.src = address;
  if (seen.has(address) || performance.now() - settled > SETTLED) fetchInto(image);
  else image.removeAttribute("src");
}

function fetchInto(image) {
  const address = image.dataset.src;
  if (image.getAttribute("src") === address) return;
  image.onload = () => seen.add(address);
  image.src = address;
}

let frame = 0, rest = 0;
function scrolled() {
  settled = performance.now();
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    drawGrid();
  });
  clearTimeout(rest);
  rest = setTimeout(() => { for (const cell of cells.values()) fetchInto(cell.firstChild); }, SETTLED + 10);
}

function reveal() {
  if (single) return;
  const grid = $("grid"), height = size + 18, top = Math.floor(cursor / columns) * height;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + height > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + height - grid.clientHeight;
}

function move(place, extend = false) {
  cursor = Math.max(0, Math.min(shown.length - 1, place));
  if (extend) select();
  else anchor = cursor;
  draw();
  reveal();
}

/** Select the range from where it began to the current image. */
function select() {
  for (let place = Math.min(anchor, cursor); place <= Math.max(anchor, cursor); place++) selected.add(keyOf(shown[place]));
}

// ------------------------------------------------------------------------------ one image

function open(row) {
  const place = shown.indexOf(row);
  if (place >= 0) cursor = place;
  single = true;
  draw();
  findSubject().then(draw, () => {});
}

function close() {
  single = false;
  drawn = "";
  draw();
  reveal();
  $("grid").focus();
}

function figure(source, words, click) {
  const image = make("img", { src: source, alt: words, loading: "lazy" });
  return make("figure", {}, click ? make("button", { type: "button", onclick: click }, image) : image, make("figcaption", {}, words));
}

function drawSingle() {
  const row = shown[cursor];
  if (!row) return close();
  const key = keyOf(row), mark = marks.get(key), caption = captions.get(key);
  $("place").textContent = `${format(cursor + 1)} of ${format(shown.length)}${selected.size ? `, ${format(selected.size)} selected` : ""}`;
  $("caption").textContent = textOf(row);
  const said = [mark && (mark.do === "keep" ? "✓ kept" : `✕ rejected${mark.reason ? `: ${mark.reason}` : ""}`), isChanged(row) && (caption.redraw ? "✎ to be drawn anew" : "✎ caption corrected")];
  $("decided").textContent = said.filter(Boolean).join(", ");
  const now = `${page.version} ${key} ${subject.nearness.length} ${(replaced.get(row.id) ?? []).length}`;
  if (now === drawn) return;
  drawn = now;
  $("large").src = `image/${page.version}/${row.number}`;
  $("large").alt = row.text;
  const phrases = Object.entries(row.slots).filter(([, value]) => value);
  $("phrases").replaceChildren(...phrases.map(([slot, value]) => make("button", {
    type: "button", title: `Show all with this ${slot}`, onclick: () => showAll(slot, value) }, value)));
  const facts = [["id", row.id], ["prompt set", row.set], ["seed", row.seed], ["size", `${row.width} × ${row.height}`], ["alignment", row.alignment], ["nearest image", row.distance === null ? null : `${row.distance} bits away`], ["nearest photo", subject.nearness[row.number] === undefined ? null : `${subject.nearness[row.number]} bits away`]];
  $("facts").replaceChildren(...facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  const photo = subject.photos.indexOf(row.reference);
  const strips = [
    ["Its reference photo", photo < 0 ? [] : [figure(`photo/${photo}`, row.reference)]],
    ["The subject", subject.photos.map((name, number) => figure(`photo/${number}`, name))],
    ["Look-alikes", lookalikes(row).map(([distance, other]) => figure(thumbnail(other), `${distance} bits away`, () => jump(other)))],
    ["Rejected before", (replaced.get(row.id) ?? []).map((each) => figure(`decided/${each.n}`, each.reason || "no reason"))],
  ];
  $("beside").replaceChildren(...strips.filter(([, figures]) => figures.length)
    .map(([title, figures]) => make("section", {}, make("h2", {}, title), make("div", { className: "strip" }, ...figures))));
}

function jump(row) {
  if (!shown.includes(row)) $("form").reset();
  filter(row.id);
  open(row);
}

function showAll(slot, value) {
  const here = shown[cursor]?.id;
  $("form").reset();
  const select = [...$("facets").querySelectorAll("select")].find((each) => each.name === slot);
  if (select) select.value = value;
  single = false;
  filter(here);
  $("grid").focus();
}

// ------------------------------------------------------------------------------ phrases before images

let vocabulary = { slots: {}, captions: [], digest: "" };

async function loadPhrases() {
  showPhrases(await get("phrases.json"));
}

function showPhrases(found) {
  vocabulary = found;
  if (found.note) $("phrases-note").textContent = found.note;
  $("save").hidden = Boolean(found.note);
  $("slots").replaceChildren(...Object.entries(found.slots).map(([slot, phrases]) => {
    const more = make("button", { type: "button", onclick: () => more.before(phraseField(slot, null)) }, "Add a phrase");
    return make("fieldset", { name: slot }, make("legend", {}, slot.replaceAll("_", " ")), ...phrases.map((phrase) => phraseField(slot, phrase)), more);
  }));
  showCaptions(found.captions);
}

function phraseField(slot, was) {
  const input = make("input", { value: was ?? "", ariaLabel: `Phrase of ${slot}`, autocomplete: "off" });
  const strike = make("button", { type: "button", ariaPressed: "false", onclick: () => {
    strike.ariaPressed = String(field.classList.toggle("struck"));
    edited();
  } }, "Strike");
  const field = make("div", { className: "phrase" }, input, strike);
  field.was = was;
  input.addEventListener("input", () => field.classList.toggle("edited", input.value !== (was ?? "")));
  if (was === null) setTimeout(() => input.focus());
  return field;
}

/** All phrases that are to stay, each with what it was. */
function phrasesNow() {
  return Object.fromEntries([...$("slots").children].map((slot) => [slot.name, [...slot.querySelectorAll(".phrase:not(.struck)")]
    .map((field) => [field.was, field.firstChild.value]).filter(([, text]) => text.trim())]));
}

function showCaptions(captions) {
  const changed = captions.filter((text, number) => text !== vocabulary.captions[number]).length;
  $("changed").className = "soft";
  $("changed").textContent = changed ? `${format(changed)} of the first ${format(captions.length)} captions change` : `The first ${format(captions.length)} captions`;
  $("save").disabled = !changed && !document.querySelector(".struck, .edited");
  $("captions").replaceChildren(...captions.map((text, number) => text === vocabulary.captions[number]
    ? make("li", {}, text)
    : make("li", {}, make("ins", {}, text), make("del", {}, vocabulary.captions[number] ?? ""))));
}

let editing = 0;
function edited() {
  clearTimeout(editing);
  editing = setTimeout(() => postPhrases({ slots: phrasesNow() }).then((found) => showCaptions(found.captions), () => {}), 300);
}

async function postPhrases(body) {
  const reply = await fetch("phrases.json", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  if (!reply.ok) {
    const problem = await reply.text();
    $("changed").className = "bad";
    $("changed").textContent = problem;
    $("save").disabled = true;
    throw new Error(problem);
  }
  return reply.json();
}

$("phrases-form").addEventListener("input", edited);
$("phrases-form").addEventListener("submit", (event) => event.preventDefault());
$("save").addEventListener("click", async () => {
  clearTimeout(editing);
  $("save").disabled = true;
  showPhrases(await postPhrases({ slots: phrasesNow(), digest: vocabulary.digest }));
  $("changed").textContent = "Saved; these are the captions now";
});

// ------------------------------------------------------------------------------ keys and clicks

const ACTIONS = {
  keep: () => mark("keep"), reject: askWhy, seed: () => page.run && mark("reject", "another seed"), edit: askCaption, undo,
};
const KEYS = {
  k: ACTIONS.keep, r: ACTIONS.reject, s: ACTIONS.seed, e: ACTIONS.edit, u: ACTIONS.undo,
  x: () => {
    const key = shown[cursor] && keyOf(shown[cursor]);
    if (key && !selected.delete(key)) selected.add(key);
    anchor = cursor;
    draw();
  },
  "/": () => {
    $("filters").open = true;
    $("query").select();
  },
  "?": () => $("keys").showModal(),
  Enter: () => shown[cursor] && !single && open(shown[cursor]),
  Escape: () => {
    if (single) return close();
    selected.clear();
    draw();
  },
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (!page.rows.length) return;
  const typing = event.target.closest("input, select, textarea");
  if (typing) {
    if (event.key === "Escape" || (event.key === "Enter" && typing.tagName === "INPUT")) {
      event.preventDefault();
      $("grid").focus();
    }
    return;
  }
  if (event.target.closest("button, summary") && (event.key === "Enter" || event.key === " ")) return;
  const screenful = columns * Math.max(1, Math.floor($("grid").clientHeight / (size + 18)));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: single ? 1 : columns, ArrowUp: single ? -1 : -columns, PageDown: screenful, PageUp: -screenful, Home: -Infinity, End: Infinity };
  const step = steps[event.key], action = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (step === undefined && !action) return;
  event.preventDefault();
  if (step !== undefined) move(cursor + step, event.shiftKey);
  else action();
});

$("grid").addEventListener("scroll", scrolled, { passive: true });
$("grid").addEventListener("click", (event) => {
  const cell = event.target.closest(".cell");
  if (!cell) return;
  const place = [...cells].find(([, each]) => each === cell)[0];
  if (event.shiftKey || event.ctrlKey || event.metaKey) {
    if (event.shiftKey) return move(place, true);
    cursor = place;
    return KEYS.x();
  }
  if (place === cursor) open(shown[place]);
  else move(place);
});
$("grid").addEventListener("dblclick", () => shown[cursor] && open(shown[cursor]));
for (const button of document.querySelectorAll("[data-do]")) button.addEventListener("click", () => ACTIONS[button.dataset.do]());
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close(""));
$("close").addEventListener("click", close);
$("help").addEventListener("click", KEYS["?"]);
$("reject-all").addEventListener("click", rejectAll);
$("redraw").addEventListener("click", () => saveCaption(true));
$("correct").addEventListener("click", () => saveCaption(false));
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  saveCaption(page.run && !event.shiftKey);
});
$("reason").addEventListener("input", () => {
  if (/^[1-5]$/.test($("reason").value)) $("why").close("ok");
});
$("form").addEventListener("submit", (event) => event.preventDefault());
$("form").addEventListener("input", async () => {
  if ($("order").value === "subject") await findSubject().catch(() => {});
  filter();
});
$("form").addEventListener("reset", () => setTimeout(filter));
addEventListener("resize", () => { if (!single) drawGrid(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });

$("reasons").replaceChildren(...REASONS.map((reason) => make("li", {}, reason)));
const wide = matchMedia("(min-width: 52.01rem)");
wide.addEventListener("change", () => { $("filters").open = wide.matches; });
$("filters").open = wide.matches;
load().then(async () => {
  $("grid").focus();
  await poll();
  document.body.dataset.ready = "";
  setInterval(() => { if (!document.hidden) poll(); }, POLL);
}, (error) => alertAbout(String(error.message)));
