"use strict";
// One suspect at a time. A key counts only once its image is shown: nobody decides about what is not seen.
const KEYS = 9;
const REASONS = {
  same_bytes: "The same file stands under another label, too.",
  near_duplicate: "An image that is nearly the same has another label.",
  label_error: "The model finds another class more probable.",
  mistake: "The model gives another class, but is not sure.",
  odd: "It is unlike all other images: perhaps of none of the classes.",
};
const part = id => document.getElementById(id);
let classes = [], suspects = [], decided = new Map(), index = 0, ready = false;

function take(state) {
  ({ classes, suspects } = state);
  decided = new Map(state.decided.map(([key, kind, name]) => [key, { kind, name }]));
}

const nextOpen = from => {
  for (let step = 0; step < suspects.length; step++) {
    const place = (from + step) % suspects.length;
    if (!decided.has(suspects[place].key)) return place;
  }
  return -1;
};

function shown(image) {
  return new Promise(resolve => {
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
  });
}

async function show(place) {
  const turn = (index = place);
  const suspect = suspects[place];
  const choice = decided.get(suspect.key);
  ready = false;
  document.body.dataset.ready = "";
  const left = suspects.filter(one => !decided.has(one.key)).length;
  part("progress").textContent = `${place + 1} of ${suspects.length}, ${left} left` + (left ? "" : ": all are decided");
  part("file").textContent = `${suspect.split}: ${suspect.filename}`;
  part("label").textContent = suspect.label;
  part("suggestion").hidden = !suspect.suggested;
  part("suggested").textContent = suspect.suggested;
  part("reason").textContent = `${REASONS[suspect.reason]} Score ${suspect.score.toPrecision(3)}.`;
  part("decided").textContent = !choice ? "" : choice.kind === "label" ? `decided: ${choice.name}` : `decided: ${choice.kind}`;
  part("twin").hidden = !suspect.other;
  part("other-file").textContent = `${suspect.suggested}: ${suspect.other}`;
  const waiting = [shown(part("image"))];
  part("image").src = `images/${suspect.rank}`;
  if (suspect.other) {
    waiting.push(shown(part("other")));
    part("other").src = `others/${suspect.rank}`;
  }
  const loaded = await Promise.all(waiting);
  if (turn !== index) return; // another one is shown by now
  part("problem").textContent = loaded.every(Boolean) ? "" : "The image cannot be shown: it can be dropped, or passed over.";
  ready = true;
  document.body.dataset.ready = suspect.key;
  if (nextOpen(place + 1) >= 0) new Image().src = `images/${suspects[nextOpen(place + 1)].rank}`;
}

async function send(path, content) {
  ready = false;
  document.body.dataset.ready = "";
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
    const response = await fetch(path, options);
    if (!response.ok) throw new Error(await response.text());
    const state = await response.json();
    take(state);
    return state;
  } catch (error) {
    part("problem").textContent = `Not stored: ${error.message}`;
    ready = true;
    document.body.dataset.ready = suspects[index].key;
    return null;
  }
}

async function decide(decision, name = "") {
  if (!ready) return;
  const stored = await send("decide", { rank: suspects[index].rank, decision, new_class: name });
  if (stored) show(nextOpen(index + 1) >= 0 ? nextOpen(index + 1) : index);
}

async function undo() {
  if (!ready) return;
  const state = await send("undo", {});
  const place = state && suspects.findIndex(one => one.key === state.undone);
  if (state) show(place >= 0 ? place : index);
}

const matches = () => {
  const typed = part("typed").value.trim().toLowerCase();
  const starts = classes.filter(name => name.toLowerCase().startsWith(typed));
  return typed ? [...starts, ...classes.filter(name => !starts.includes(name) && name.toLowerCase().includes(typed))] : [];
};

function inSearch(event) {
  if (event.key === "Enter" && matches().length) decide("label", matches()[0]);
  else if (event.key !== "Escape") return;
  event.preventDefault();
  part("typed").value = part("found").textContent = "";
  part("typed").blur();
}

function inPage(event) {
  const number = Number(event.key);
  const suggested = suspects[index].suggested;
  if (event.key >= "1" && event.key <= String(KEYS) && number <= classes.length) decide("label", classes[number - 1]);
  else if (event.key === "Enter" && suggested) decide("label", suggested);
  else if (event.key === " " || event.key === "k") decide("keep");
  else if (event.key === "x") decide("drop");
  else if (event.key === "u") undo();
  else if (event.key === "ArrowRight") show((index + 1) % suspects.length);
  else if (event.key === "ArrowLeft") show((index + suspects.length - 1) % suspects.length);
  else if ((event.key === "/" || event.key === "0") && classes.length > KEYS) part("typed").focus();
  else return;
  event.preventDefault();
}

async function start() {
  take(await (await fetch("state")).json());
  if (!suspects.length) {
    part("empty").hidden = false;
    return;
  }
  for (const [place, name] of classes.slice(0, KEYS).entries()) {
    const item = document.createElement("li"), key = document.createElement("kbd");
    key.textContent = place + 1;
    item.append(key, ` ${name}`);
    item.onclick = () => decide("label", name);
    part("classes").append(item);
  }
  part("search").hidden = classes.length <= KEYS;
  part("typed").oninput = () => { part("found").textContent = matches().slice(0, 8).join(", "); };
  document.querySelector("main").hidden = false;
  document.addEventListener("keydown", event => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target === part("typed")) inSearch(event);
    else inPage(event);
  });
  show(Math.max(0, nextOpen(0)));
}
start();
