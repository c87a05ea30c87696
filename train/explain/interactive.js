"use strict";

// The page's data: numbers of explain.json for each photo, the photo itself, and the colours of the drawn classes.
const data = JSON.parse(document.getElementById("data").textContent);

const element = (id) => document.getElementById(id);
const stage = element("stage"), whole = element("whole"), frame = element("crop");
const down = element("down"), right = element("right"), play = element("play");
const classes = element("class"), said = element("said");

// What is looked at: a photo, the crop's place in it, and what the maps show.
let photo = data.photos[0];
const place = { down: 0, right: 0 };
let panels = [];
let timer = null;
let speech = null;

const percent = (chance) => `${(100 * chance).toFixed(1)} %`;
const clamped = (offset) => Math.min(photo.last - 1, Math.max(0, Math.round(offset)));
const clone = (id) => element(id).content.firstElementChild.cloneNode(true);

function colourOf(index) {
  const at = photo.shown.indexOf(index);
  return at < 0 ? data.other : data.colours[at];
}

function channels(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

// Another photo: its networks, classes and ranges; the crop goes to the middle.
function open(chosen) {
  photo = chosen;
  const span = photo.crop + 2 * photo.last;
  frame.width = frame.height = photo.crop;
  frame.style.left = frame.style.top = `${(100 * photo.last) / span}%`;
  frame.style.width = frame.style.height = `${(100 * photo.crop) / span}%`;
  whole.style.width = whole.style.height = `${(100 * (photo.crop + photo.last)) / span}%`;
  for (const each of [whole, frame]) each.classList.toggle("coarse", photo.crop < 160);
  down.max = right.max = photo.last - 1;
  stage.setAttribute("aria-label", photo.image);
  classes.replaceChildren(...photo.shown.map((index) => new Option(photo.names[index], index)));
  panels = photo.networks.map(panel);
  element("networks").replaceChildren(...panels.map((each) => each.section));
  drawMaps();
  whole.onload = () => move(clamped((photo.last - 1) / 2), clamped((photo.last - 1) / 2));
  whole.src = photo.source;
}

function panel(network) {
  const section = clone("network");
  section.querySelector("h2").textContent = network.model;
  section.querySelector(".agree").textContent = `two places agree ${network.consistency.toFixed(1)} % of the time`;
  const map = section.querySelector(".map");
  const point = (event) => {
    const box = map.getBoundingClientRect();
    const at = (pixels, length) => clamped((photo.last * pixels) / length - 0.5);
    stop();
    move(at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width));
  };
  map.addEventListener("pointerdown", point);
  map.addEventListener("pointermove", (event) => event.buttons && point(event));
  const [answers, canvas, mark] = [".answers", "canvas", ".mark"].map((name) => section.querySelector(name));
  return { network, section, answers, canvas, mark };
}

// The crop goes to a place, and everything that depends on it is shown.
function move(toDown, toRight) {
  Object.assign(place, { down: toDown, right: toRight });
  const span = photo.crop + 2 * photo.last;
  whole.style.left = `${(100 * (photo.last - place.right)) / span}%`;
  whole.style.top = `${(100 * (photo.last - place.down)) / span}%`;
  frame.getContext("2d").drawImage(
    whole, place.right, place.down, photo.crop, photo.crop, 0, 0, photo.crop, photo.crop);
  for (const input of [down, right]) {
    input.value = place[input.id];
    input.nextElementSibling.textContent = `${place[input.id]} px`;
  }
  for (const { network, answers, mark } of panels) {
    answers.replaceChildren(...best(network).map(answer));
    mark.style.left = `${(100 * (place.right + 0.5)) / photo.last}%`;
    mark.style.top = `${(100 * (place.down + 0.5)) / photo.last}%`;
  }
  if (timer === null) say();
}

// The most probable classes of a network where the crop is.
function best(network) {
  const found = network.top.classes[place.down][place.right];
  const chances = network.top.probabilities[place.down][place.right];
  return found.map((index, rank) => ({ index, name: photo.names[index], chance: chances[rank] }));
}

function answer({ index, name, chance }) {
  const row = clone("answer");
  const [label, share, bar] = [".name", ".chance", ".bar span"].map((part) => row.querySelector(part));
  label.textContent = label.title = name;
  share.textContent = percent(chance);
  bar.style.width = `${100 * chance}%`;
  bar.style.background = colourOf(index);
  return row;
}

// For screen readers, once the photo lies still.
function say() {
  clearTimeout(speech);
  speech = setTimeout(() => {
    const heard = panels.map(({ network }) => {
      const [first] = best(network);
      return `${network.model}: ${first.name}, ${percent(first.chance)}`;
    });
    said.textContent = `crop ${place.down} pixels down, ${place.right} right. ${heard.join(". ")}`;
  }, 400);
}

const shownMap = () => document.querySelector("input[name=map]:checked").value;

function drawMaps() {
  const probability = shownMap() === "probability";
  for (const { network, canvas } of panels) {
    canvas.width = canvas.height = photo.last;
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(photo.last, photo.last);
    for (let i = 0; i < photo.last ** 2; i++) {
      const [row, column] = [Math.floor(i / photo.last), i % photo.last];
      const index = probability ? Number(classes.value) : network.predictions[row][column];
      const strength = probability ? network.probabilities[index][row][column] : 1;
      pixels.data.set([...channels(colourOf(index)), Math.round(255 * strength)], 4 * i);
    }
    context.putImageData(pixels, 0, 0);
    canvas.setAttribute("aria-label", probability ? probabilityWords(network) : predictionWords(network));
  }
  drawKey(probability);
}

function predictionWords(network) {
  const counts = new Map();
  for (const index of network.predictions.flat()) counts.set(index, (counts.get(index) ?? 0) + 1);
  const shares = [...counts].sort((a, b) => b[1] - a[1]).slice(0, data.colours.length)
    .map(([index, count]) => `${photo.names[index]} at ${percent(count / photo.last ** 2)}`);
  return `map of ${network.model}: ${shares.join(", ")} of all places`;
}

function probabilityWords(network) {
  const chances = network.probabilities[classes.value].flat();
  const [least, most] = [Math.min(...chances), Math.max(...chances)];
  return `map of ${network.model}: ${photo.names[classes.value]}, from ${percent(least)} to ${percent(most)}`;
}

function drawKey(probability) {
  const index = Number(classes.value);
  const rows = probability
    ? [[colourOf(index), `${photo.names[index]}: the stronger, the more probable`]]
    : [...photo.shown.map((each) => [colourOf(each), photo.names[each]]), [data.other, "other classes"]];
  element("key").replaceChildren(...rows.map(([colour, words]) => {
    const item = document.createElement("li");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = colour;
    item.append(swatch, words);
    return item;
  }));
}

function stop() {
  clearTimeout(timer);
  timer = null;
  play.setAttribute("aria-pressed", "false");
  play.textContent = "Play the diagonal";
}

// Along the diagonal and back, until somebody takes over.
function start() {
  const steps = Math.max(1, 2 * (photo.last - 1));
  let step = 0;
  const next = () => {
    timer = setTimeout(next, data.milliseconds);
    const along = step < photo.last ? step : steps - step;
    move(along, along);
    step = (step + 1) % steps;
  };
  play.setAttribute("aria-pressed", "true");
  play.textContent = "Stop";
  next();
}

play.addEventListener("click", () => {
  if (timer === null) return start();
  stop();
  say();
});

for (const input of [down, right]) {
  input.addEventListener("input", () => {
    stop();
    move(Number(down.value), Number(right.value));
  });
}

// The photo follows the hand, so that the crop moves the other way.
let held = null;
stage.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  stop();
  stage.setPointerCapture(event.pointerId);
  held = { x: event.clientX, y: event.clientY, ...place };
});
stage.addEventListener("pointermove", (event) => {
  if (held === null) return;
  const pixels = (photo.crop + 2 * photo.last) / stage.clientWidth;
  move(clamped(held.down - (event.clientY - held.y) * pixels), clamped(held.right - (event.clientX - held.x) * pixels));
});
for (const ending of ["pointerup", "pointercancel"]) stage.addEventListener(ending, () => { held = null; });

const ARROWS = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, 1], ArrowRight: [0, -1] };
stage.addEventListener("keydown", (event) => {
  const step = ARROWS[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  stop();
  const length = event.shiftKey ? 8 : 1;
  move(clamped(place.down + length * step[0]), clamped(place.right + length * step[1]));
});

for (const radio of document.getElementsByName("map")) radio.addEventListener("change", drawMaps);
classes.addEventListener("change", () => {
  document.querySelector("input[value=probability]").checked = true;
  drawMaps();
});

if (data.photos.length > 1) {
  element("photos").hidden = false;
  element("photos").append(...data.photos.map((each, number) => {
    const label = document.createElement("label");
    const radio = Object.assign(document.createElement("input"), { type: "radio", name: "photo", checked: !number });
    radio.addEventListener("change", () => { stop(); open(each); });
    label.append(radio, " ", Object.assign(new Image(), { src: each.source, alt: each.image }));
    return label;
  }));
}
open(photo);
