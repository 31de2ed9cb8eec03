// Asks one question after another: the keys, the answers, and what there is besides pictures.

import { Slices } from "./slices.js";
import { Viewer, colourOf } from "./viewer.js";

const find = (selector) => document.querySelector(selector);
const client = crypto.randomUUID(); // of this page: a second one must not pass for it
const viewer = new Viewer(showPlace);
let info = null; // the question
let upcoming = null; // { question, slices } that is loaded meanwhile
let best = null, worst = null;
let isBusy = false;
let seen = 0, seenSince = 0; // milliseconds in which the picture was in view
let timer = 0;

// Server -------------------------------------------------------------------------------------------

async function request(name, content) {
  const options = content && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ client, ...content }),
  };
  let response;
  try {
    response = await fetch(content ? name : `${name}${name.includes("?") ? "&" : "?"}client=${client}`, options);
  } catch {
    end("No connection", "nnUNetv2_mapo choose has ended, or the connection is down. Every answer that was given is kept: start the command again.");
    throw new Error("no connection");
  }
  const answer = await response.json();
  if (response.status === 423) {
    find("#elsewhere-text").textContent = answer.error;
    show("elsewhere");
    find("#take-over").focus();
  }
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

const show = (screen) => { document.body.dataset.screen = screen; };

function end(title, text) {
  clearInterval(timer);
  find("#ended-title").textContent = title;
  find("#ended-text").textContent = text;
  show("ended");
}

function say(text) {
  const toast = find("#toast");
  toast.textContent = text;
  toast.classList.add("is-shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => toast.classList.remove("is-shown"), 3500 + 40 * text.length);
}

// Questions ----------------------------------------------------------------------------------------

async function join(takeOver = false) {
  await request("join", { rater: find("#rater").value, take_over: takeOver });
  clearInterval(timer);
  timer = setInterval(look, 4000); // says that this page is here
  await next();
}

async function next() {
  const asked = await request("question");
  showState(asked.state);
  if (!asked.question) return rest(asked.state);
  const slices = upcoming?.question === asked.question ? upcoming.slices : new Slices(asked);
  info = asked;
  best = worst = null;
  show("asking"); // first: what is not shown has no size
  document.activeElement?.blur(); // Enter must not press what was clicked for the last question
  showPanels();
  await viewer.open(info, [...document.querySelectorAll(".panel canvas")], slices);
  [seen, seenSince] = [0, document.hidden ? 0 : performance.now()];
  document.body.dataset.question = info.question;
  if (asked.upcoming && upcoming?.question !== asked.upcoming) prepare(asked.upcoming).catch(report);
}

// Load the next question while this one is judged.
async function prepare(question) {
  const coming = await request(`upcoming?question=${question}`);
  const slices = new Slices(coming);
  upcoming = { question, slices };
  slices.load(coming.disputed.indexOf(Math.max(...coming.disputed)));
}

// There is no question, for now or for good.
async function rest(state) {
  info = null;
  if (state.finished) {
    find("#finished-text").textContent = `${state.answered} of ${state.total} questions have your answer. Thank you.`;
    find("#summary").textContent = (await request("summary")).text;
    const leftOut = Object.entries(state.left_out);
    find("#left-out").hidden = !leftOut.length;
    find("#left-out ul").replaceChildren(...leftOut.map(([name, why]) => {
      const item = document.createElement("li");
      item.textContent = `${name}: ${why}`;
      return item;
    }));
    show("finished");
    find("#finish").focus();
    return;
  }
  find("#waiting-title").textContent = state.answered ? "Segmenting the next image" : "Segmenting the first images";
  find("#waiting-text").textContent = `${state.waiting} images are left to segment. The first one is shown as soon as it is ready.`;
  show("waiting");
  lookAgain();
}

function lookAgain() {
  setTimeout(async () => {
    if (document.body.dataset.screen !== "waiting") return;
    await next().catch((error) => { report(error); lookAgain(); });
  }, 700);
}

async function look() {
  if (["elsewhere", "ended"].includes(document.body.dataset.screen)) return;
  const state = await request("state").catch(() => null);
  if (state) showState(state);
}

// Answers ------------------------------------------------------------------------------------------

async function answer(verdict) {
  if (isBusy || !info) return;
  if (verdict === "choice" && best === null) return say("Name the best first: its number.");
  isBusy = true;
  const isChoice = verdict === "choice";
  try {
    await request("answer", {
      question: info.question, verdict, seconds: readClock() / 1000,
      best: isChoice ? best : null, worst: isChoice ? worst : null,
    });
    await next();
  } catch (error) {
    report(error);
  } finally {
    isBusy = false;
  }
}

function mark(place, isBest) {
  if (place >= info.num_shown) return;
  if (isBest) [best, worst] = [best === place ? null : place, worst === place ? null : worst];
  else [worst, best] = [worst === place ? null : place, best === place ? null : best];
  showMarks();
  if (best !== null && (worst !== null || info.num_shown === 2)) answer("choice");
  else if (best === null && worst !== null && info.num_shown === 2) {
    best = 1 - worst;
    answer("choice");
  }
}

async function undo() {
  if (isBusy) return;
  isBusy = true;
  try {
    await request("undo", {});
    await next();
    say("The last answer is taken back.");
  } catch (error) {
    report(error);
  } finally {
    isBusy = false;
  }
}

// The screens "elsewhere" and "ended" say it themselves.
const report = (error) => { if (!["elsewhere", "ended"].includes(document.body.dataset.screen)) say(error.message); };

function readClock() {
  return seen + (seenSince ? performance.now() - seenSince : 0);
}

document.addEventListener("visibilitychange", () => {
  seen = readClock();
  seenSince = document.hidden ? 0 : performance.now();
});

// Pictures and numbers -----------------------------------------------------------------------------

const nameOf = (place) => (info.is_region ? "AB"[place] : String(place + 1));

function showPanels() {
  const panels = Array.from({ length: info.num_shown }, (_, place) => {
    const panel = document.createElement("section");
    panel.className = "panel";
    panel.setAttribute("aria-label", `Segmentation ${nameOf(place)}`);
    panel.innerHTML = `<div class="frame"><canvas></canvas><span class="name"></span></div>
      <div class="marks"><button class="best" type="button"></button><button class="worst" type="button"></button></div>`;
    panel.querySelector(".name").textContent = nameOf(place);
    const [bestButton, worstButton] = panel.querySelectorAll("button");
    bestButton.innerHTML = info.is_region ? `${nameOf(place)} is better <kbd>${nameOf(place)}</kbd>` : `Best <kbd>${place + 1}</kbd>`;
    worstButton.innerHTML = `Worst <kbd>⇧${place + 1}</kbd>`;
    bestButton.onclick = () => mark(place, true);
    worstButton.onclick = () => mark(place, false);
    if (info.num_shown === 2) {
      worstButton.remove();
      panel.querySelector(".marks").classList.add("single");
      if (!info.is_region) bestButton.innerHTML = `Better <kbd>${place + 1}</kbd>`;
    }
    return panel;
  });
  find("#panels").replaceChildren(...panels);
  find("#panels").dataset.number = info.num_shown;
  find("#prompt").textContent = info.is_region ? "A or B?" : info.num_shown === 2 ? "Which is better?" : "Best and worst?";
  find("#image").textContent = info.image;
  find("#send").hidden = info.num_shown === 2;
  find("#slices").hidden = info.shape[1] === 1;
  find("#slice").max = info.shape[1] - 1;
  find("#legend").replaceChildren(...info.values.flatMap((value, place) => {
    if (value === 0) return [];
    const entry = document.createElement("span");
    entry.innerHTML = `<svg viewBox="0 0 8 8" aria-hidden="true"><rect width="8" height="8" rx="2" fill="${colourOf(value)}"/></svg>`;
    entry.append(info.labels[place]);
    return [entry];
  }));
  drawDisputed();
  showMarks();
}

function showMarks() {
  document.querySelectorAll(".panel").forEach((panel, place) => {
    panel.classList.toggle("is-best", best === place);
    panel.classList.toggle("is-worst", worst === place);
    panel.querySelector(".best").setAttribute("aria-pressed", best === place);
    panel.querySelector(".worst")?.setAttribute("aria-pressed", worst === place);
  });
  find("#send").disabled = best === null;
}

function showPlace(place) {
  find("#slice").value = place;
  find("#place").textContent = `${place + 1} of ${info.shape[1]}`;
}

// How much candidates differ in each slice, above the slider.
function drawDisputed() {
  const canvas = find("#disputed");
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: canvas.clientWidth * ratio || 1, height: 20 * ratio });
  const context = canvas.getContext("2d");
  context.fillStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  const most = Math.max(...info.disputed, 1);
  const inset = 8 * ratio; // the slider's thumb does not reach the ends
  const step = (canvas.width - 2 * inset) / Math.max(info.shape[1] - 1, 1);
  info.disputed.forEach((number, place) => {
    if (!number) return;
    const height = Math.max(Math.sqrt(number / most) * canvas.height, 2 * ratio);
    const width = Math.max(Math.min(step * 0.8, 10 * ratio), ratio);
    context.fillRect(inset + place * step - width / 2, canvas.height - height, width, height);
  });
}

function showState(state) {
  const more = state.waiting ? ` (${state.waiting} being segmented)` : "";
  const pace = state.seconds === null ? "" : ` · ${state.seconds} s each`;
  find("#progress").textContent = `${state.answered} of ${state.total}${more}${pace}`;
  find("#bar div").style.width = `${(100 * state.answered) / Math.max(state.total + state.waiting, 1)}%`;
  for (const button of document.querySelectorAll(".undo")) button.disabled = !state.can_undo;
  if (state.failure && state.failure !== showState.failure) say(`Segmenting has stopped: ${state.failure}`);
  showState.failure = state.failure;
}

function help() {
  find("#help").showModal();
  find("#help").scrollTop = 0; // the button that has the focus is at its end
}

// Keys ---------------------------------------------------------------------------------------------

const KEYS = {
  e: () => answer("equal"), n: () => answer("unusable"), s: () => answer("skip"),
  Enter: () => answer("choice"), u: undo, Backspace: undo,
  ArrowUp: (event) => (event.shiftKey ? viewer.pan(0, 40) : viewer.go(viewer.place - 1)),
  ArrowDown: (event) => (event.shiftKey ? viewer.pan(0, -40) : viewer.go(viewer.place + 1)),
  ArrowLeft: (event) => (event.shiftKey ? viewer.pan(40, 0) : viewer.go(viewer.place - 1)),
  ArrowRight: (event) => (event.shiftKey ? viewer.pan(-40, 0) : viewer.go(viewer.place + 1)),
  PageUp: () => viewer.go(viewer.place - 10), PageDown: () => viewer.go(viewer.place + 10),
  d: (event) => viewer.goDisputed(event.shiftKey ? -1 : 1),
  "+": () => viewer.zoomBy(1.25), "=": () => viewer.zoomBy(1.25), "-": () => viewer.zoomBy(0.8),
  0: () => viewer.fit(), z: () => viewer.fitDisputed(),
  "[": () => viewer.changeWindow(-0.1, 0), "]": () => viewer.changeWindow(0.1, 0),
  ",": () => viewer.changeWindow(0, -0.04), ".": () => viewer.changeWindow(0, 0.04),
  r: () => { viewer.resetWindow(); viewer.changeWindow(0, 0); },
  h: () => { viewer.hidden = !viewer.hidden; viewer.draw(); },
  v: () => { viewer.differing = !viewer.differing; viewer.draw(); },
  c: () => { viewer.nextChannel(); if (!info.is_rgb && info.shape[0] > 1) say(`Channel ${info.channels[viewer.channel]}`); },
};

document.addEventListener("keydown", (event) => {
  const { screen } = document.body.dataset;
  if (find("#help").open || event.altKey || event.metaKey || event.target.id === "rater") return;
  if (event.ctrlKey && event.key !== "z") return;
  if (event.key === "?" && screen === "asking") return help();
  if (screen === "finished" && event.key.toLowerCase() === "u") return undo();
  if (screen !== "asking" || !info) return;
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  const letter = info.is_region && !event.ctrlKey ? "ab".indexOf(event.key.toLowerCase()) : -1;
  if (event.repeat && (digit || letter >= 0 || /^[ensu]$|Enter|Backspace/i.test(event.key))) return;
  if (letter >= 0) mark(letter, true);
  else if (digit) mark(digit[1] - 1, !event.shiftKey);
  else if (event.ctrlKey) undo();
  else {
    const isButton = event.target.matches("button") && (event.key === " " || (event.key === "Enter" && best === null));
    const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
    if (isButton || !act) return;
    act(event);
  }
  event.preventDefault();
});

find("#join").addEventListener("submit", (event) => {
  event.preventDefault();
  join().catch(report);
});
find("#take-over").onclick = () => join(true).catch(report);
find("#send").onclick = () => answer("choice");
find("#show-help").onclick = help;
find("#next-disputed").onclick = () => viewer.goDisputed(1);
find("#slice").oninput = (event) => viewer.go(Number(event.target.value));
find("#finish").onclick = async () => {
  await request("finish", {});
  end("Thank you", "The answers are kept. You can close this page.");
};
for (const button of document.querySelectorAll("[data-verdict]")) button.onclick = () => answer(button.dataset.verdict);
for (const button of document.querySelectorAll(".undo")) button.onclick = undo;
window.addEventListener("resize", () => info && drawDisputed());
window.addEventListener("pagehide", () => {
  fetch("leave", { method: "POST", keepalive: true, headers: { "Content-Type": "application/json" }, body: JSON.stringify({ client }) });
});

const { rater } = await request("start");
find("#rater").value = sessionStorage.rater ?? rater;
find("#rater").addEventListener("change", () => { sessionStorage.rater = find("#rater").value; });
show("start");
find("#rater").focus();
find("#rater").select();
