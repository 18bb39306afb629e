"use strict";
// The token comes behind the # of the address, which browsers do not send.
const token = location.hash.slice(1);
const part = (id) => document.getElementById(id);
const cards = new Map();
// Points of a plot: one each half of a second.
const POINTS = 120;
// Linkspan says something three times a second, or waits until what it sent is shown.
const SILENCE = 900;

let socket;
let heard = performance.now();
let connected = false;
let lost = "";
let round = 0;
// The screen that is open: its key, and what ends it.
let screen = { key: "", end: () => {} };
let opened = false;

const STATES = {
  running: "● running",
  silent: "✕ does not answer",
  pausing: "✕ ended, starts again soon",
  ending: "◌ ending",
  stopped: "○ stopped",
  failed: "✕ ended",
};

// Those of links that somebody misses.
const LOST = ["silent", "pausing", "failed"];

// What a button does in which states, and what is asked before.
const VERBS = {
  start: { when: ["stopped", "failed", "pausing", "ending"] },
  restart: {
    when: ["running", "silent"],
    ask: "Restart %? Its guests wait until it is back.",
  },
  drain: {
    when: ["running", "silent"],
    ask: "Drain %? It finishes what is in flight, however long that takes, and ends.",
  },
  stop: {
    when: ["running", "silent", "pausing"],
    ask: "Stop %? It ends, and is not started again by itself.",
  },
};

function say(id, text) {
  const at = part(id);
  if (at.textContent !== text) at.textContent = text;
  if (id !== "summary") at.hidden = text === "";
}

function put(at, text) {
  if (at.textContent !== text) at.textContent = text;
}

function showLoss() {
  const silent = connected && performance.now() - heard > SILENCE;
  const why = lost || (silent ? "nothing is heard from linkspan" : "");
  say("lost", why && "Not live: " + why);
  document.body.classList.toggle("stale", why !== "");
}

function connect() {
  const scheme = location.protocol === "https:" ? "wss://" : "ws://";
  const mine = new WebSocket(scheme + location.host + "/links");
  socket = mine;
  mine.onopen = () => mine.send(token);
  mine.onmessage = (event) => {
    heard = performance.now();
    const said = JSON.parse(event.data);
    if (said.refusal) say("said", said.refusal);
    else if (said.links) show(said);
    else return;
    // One that is not looked at gets no pictures, and shows what is new when it does.
    mine.send("seen");
  };
  mine.onclose = (event) => {
    connected = false;
    lost = event.reason || "the connection to linkspan is lost";
    if (!cards.size) say("summary", "");
    showLoss();
    if (event.code !== 1008) setTimeout(connect, 1000);
  };
}

function show(said) {
  connected = true;
  lost = said.lost || "";
  const names = new Set(said.links.map((link) => link.name));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    card.article.remove();
    cards.delete(name);
  }
  const isRound = said.round !== round;
  round = said.round;
  for (const link of said.links) {
    const card = cards.get(link.name) || add(link.name);
    update(card, link, said.changes, isRound);
  }
  const bad = said.links.filter((link) => LOST.includes(link.state));
  const running = said.links.filter((link) => link.state === "running").length;
  const all = said.links.length + said.more;
  let summary = `${running} of ${all} links run`;
  // Once somebody was asked.
  if (!all && round) summary = "There are no links yet; linkspan's log says how to add one";
  if (bad.length) summary += "; lost: " + bad.map((link) => link.name).join(", ");
  if (said.more) summary += `; ${said.more} more are not shown`;
  say("summary", summary);
  document.title = (bad.length ? "! " : "") + "Linkspan";
  showLoss();
  // Where there is one screen, and room for it beside the links, it is what people came for.
  const screens = said.links.flatMap((link) => (link.heads === 1 ? [link.name] : []));
  if (!opened && screens.length === 1 && innerWidth >= 900) open(screens[0], 0);
  opened = opened || isRound;
}

function add(name) {
  const article = part("card").content.cloneNode(true).querySelector("article");
  const find = (words) => article.querySelector(words);
  const plots = [...article.querySelectorAll("svg")].map((svg) => ({ svg, points: [] }));
  const card = { name, article, find, plots, heads: 0, details: "" };
  article.dataset.link = name;
  put(find(".title"), name);
  for (const button of article.querySelectorAll("[data-verb]")) {
    button.setAttribute("aria-label", `${button.textContent} ${name}`);
    button.onclick = () => ask(button.dataset.verb, name);
  }
  // In the order of their names, as linkspan tells them.
  const after = [...cards.values()].find((other) => other.name > name);
  part("links").insertBefore(article, after ? after.article : null);
  cards.set(name, card);
  return card;
}

function update(card, link, changes, isRound) {
  const { find, article } = card;
  const badge = find(".badge");
  const why = link.state === "failed" ? `: ${link.last_end}` : "";
  put(badge, (STATES[link.state] || link.state) + why);
  badge.dataset.state = article.dataset.state = link.state;
  screens(card, link.heads);
  // Of some kinds of links nothing is counted.
  find(".plots").hidden = !link.counts;
  if (isRound) {
    plot(card.plots[0], link.operations, "operations a second");
    plot(card.plots[1], link.bytes, "bytes a second");
  }
  put(find(".operations"), `${count(link.operations)}/s`);
  put(find(".bytes"), `${size(link.bytes)}/s`);
  const meter = find(".meter");
  meter.max = Math.max(link.room, 1);
  meter.value = link.in_flight;
  put(find(".flight"), `${count(link.in_flight)} of ${count(link.room)}`);
  const errors = find(".errors");
  put(errors, link.errors === 1 ? "1 error" : `${count(link.errors)} errors`);
  errors.classList.toggle("some", link.errors > 0);
  const process = link.pid ? `process ${link.pid}, ` : "";
  const last = link.last_end ? `; before: ${link.last_end}` : "";
  const starts = link.starts === 1 ? "once" : `${link.starts} times`;
  put(find(".history"), `${process}started ${starts}${last}`);
  details(card, link.endpoints);
  find(".verbs").hidden = !changes;
  const at = document.activeElement;
  for (const button of article.querySelectorAll("[data-verb]")) {
    button.disabled = !VERBS[button.dataset.verb].when.includes(link.state);
  }
  // Whoever is at a button that goes is at another one, and not at the page's beginning.
  if (at.disabled && article.contains(at)) find("[data-verb]:enabled")?.focus();
}

function screens(card, heads) {
  if (heads === card.heads) return;
  card.heads = heads;
  const buttons = Array.from({ length: heads }, (_, head) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heads > 1 ? `Screen ${head}` : "Screen";
    button.setAttribute("aria-label", `${button.textContent} of ${card.name}`);
    button.onclick = () => open(card.name, head);
    return button;
  });
  card.find(".screens").replaceChildren(...buttons);
}

function plot(plot, value, what) {
  const { points, svg } = plot;
  points.push(value);
  if (points.length > POINTS) points.shift();
  const top = Math.max(...points, 1);
  const first = POINTS - points.length;
  const at = (value, index) => `${first + index} ${(31 - (30 * value) / top).toFixed(1)}`;
  const line = points.map(at).join(" L ");
  svg.querySelector(".line").setAttribute("d", "M " + line);
  svg.querySelector(".area").setAttribute("d", `M ${first} 32 L ${line} L ${POINTS - 1} 32 Z`);
  const most = count(Math.max(...points));
  const words = `the last minute: now ${count(value)}, at most ${most} ${what}`;
  svg.setAttribute("aria-label", words);
}

// What is within, for who has opened it.
function details(card, endpoints) {
  const at = card.find("details");
  const text = at.open ? JSON.stringify(endpoints) : "";
  at.ontoggle = () => details(card, endpoints);
  if (text === card.details) return;
  card.details = text;
  if (!at.open) return;
  const parts = endpoints.flatMap((endpoint) => {
    const heading = document.createElement("h3");
    const phase = endpoint.phase ? `: ${endpoint.phase}` : "";
    heading.textContent = endpoint.name + phase;
    const facts = document.createElement("p");
    const number = (name, value) => (name.endsWith("bytes") ? size(value) : count(value));
    const words = endpoint.numbers.map(([name, value]) => `${name} ${number(name, value)}`);
    if (endpoint.peers !== null) words.unshift(`peers ${count(endpoint.peers)}`);
    if (endpoint.last_error) words.push(`last fault: ${endpoint.last_error}`);
    facts.textContent = words.join(", ");
    const rings = endpoint.rings.map((ring) => [
      ring.ring, `${count(ring.in_flight)} of ${count(ring.size)}`, count(ring.kicks), count(ring.errors),
    ]);
    return [heading, facts, ...(rings.length ? [table(["ring", "in flight", "kicks", "errors"], rings)] : [])];
  });
  card.find(".endpoints").replaceChildren(...parts);
}

function table(head, rows) {
  const made = document.createElement("table");
  for (const [index, cells] of [head, ...rows].entries()) {
    const row = made.insertRow();
    for (const cell of cells) {
      const at = document.createElement(index ? "td" : "th");
      at.textContent = cell;
      row.append(at);
    }
  }
  return made;
}

function count(number) {
  return number < 1e7 ? number.toLocaleString("en") : `${Math.round(number / 1e6).toLocaleString("en")} million`;
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; bytes >= 1024 && unit < units.length - 1; unit += 1) bytes /= 1024;
  return `${unit && bytes < 100 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

function ask(verb, name) {
  const { ask } = VERBS[verb];
  if (!ask) return change(verb, name);
  put(part("question"), ask.replace("%", name));
  put(part("yes"), verb[0].toUpperCase() + verb.slice(1));
  part("yes").onclick = () => {
    part("confirm").close();
    change(verb, name);
  };
  part("no").onclick = () => part("confirm").close();
  part("confirm").showModal();
}

function change(verb, name) {
  if (socket.readyState !== WebSocket.OPEN) return;
  socket.send(`${verb} ${name}`);
  say("said", `Asked to ${verb} ${name}`);
}

function open(name, head) {
  const key = `${head} ${name}`;
  opened = true;
  if (screen.key !== key) {
    screen.end();
    put(part("whose"), head ? `${name}, ${head}` : name);
    part("view").hidden = false;
    screen = { key, end: watchScreen([token, "open " + key], () => {}) };
    part("stage").dataset.screen = key;
  }
  part("view").scrollIntoView({ block: "nearest" });
}

part("close").onclick = () => {
  const { key, end } = screen;
  end();
  screen = { key: "", end: () => {} };
  part("view").hidden = true;
  // Back to where it was opened.
  const name = key.slice(key.indexOf(" ") + 1);
  cards.get(name)?.find(".screens button")?.focus();
};

setInterval(showLoss, 200);
// Another token: whoever pastes the new address into the same page.
addEventListener("hashchange", () => location.reload());
connect();
