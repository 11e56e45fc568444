"use strict";
/* Talks to the service that it came from. Names and ids are data: they become text, never markup. */

const at = (id) => document.getElementById(id);
const state = { models: [], history: [], found: [], active: -1 };
const running = {};
let key = sessionStorage.getItem("diffuserec-key") || "";

/* ---- talking ---- */

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, body, signal) {
  const headers = {};
  if (key) headers["Authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method: body === undefined ? "GET" : "POST", headers, signal };
  if (body !== undefined) options.body = JSON.stringify(body);
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The service does not answer.");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, content.error || `Status ${answer.status}`);
  return content;
}

/* Runs the newest of the tasks of one kind; an older one that still runs is given up. Tells whether it was the newest
   to the end. */
async function newest(kind, task) {
  if (running[kind]) running[kind].abort();
  const controller = new AbortController();
  running[kind] = controller;
  try {
    await task(controller.signal);
    if (running[kind] === controller) show_problem(kind, "");
  } catch (error) {
    if (error.name !== "AbortError" && running[kind] === controller) report(kind, error);
  }
  return running[kind] === controller;
}

const problems = {};

function show_problem(kind, text) {
  problems[kind] = text;
  const shown = Object.values(problems).filter(Boolean)[0] || "";
  at("problem").textContent = shown;
  at("problem").hidden = !shown;
}

function report(kind, error) {
  if (error.status === 401) {
    at("key-form").hidden = false;
    at("everything").hidden = true;
    show_problem(kind, key ? "This key is not known." : "");
    at("key").focus();
  } else {
    show_problem(kind, error.message);
  }
}

/* ---- building ---- */

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/* Text with what cannot be seen, or would turn other text around, as a sign. */
function plain(text) {
  return String(text).replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, "\ufffd");
}

function label_of(item) {
  return plain(item.name || item.item_id);
}

function naming(item) {
  const name = make("bdi", { class: "name clamp" }, label_of(item));
  const id = item.name ? make("bdi", { class: "id" }, plain(item.item_id)) : null;
  return make("div", {}, name, id);
}

function button(label, sign, action) {
  const made = make("button", { type: "button", class: "icon", "aria-label": label, title: label }, sign);
  made.addEventListener("click", action);
  return made;
}

/* ---- searching ---- */

const search = at("search");

function close_found() {
  state.found = [];
  state.active = -1;
  at("found").hidden = true;
  at("found").replaceChildren();
  search.setAttribute("aria-expanded", "false");
  search.removeAttribute("aria-activedescendant");
}

function activate(index) {
  state.active = index;
  [...at("found").children].forEach((line, number) => {
    line.setAttribute("aria-selected", String(number === index));
    if (number === index) line.scrollIntoView({ block: "nearest" });
  });
  if (index >= 0) search.setAttribute("aria-activedescendant", `found-${index}`);
}

function show_found(items) {
  state.found = items;
  const lines = items.map((item, number) => {
    const line = make("li", { role: "option", id: `found-${number}`, "aria-selected": "false" }, naming(item));
    line.addEventListener("mousedown", (event) => event.preventDefault());
    line.addEventListener("click", () => add(item));
    return line;
  });
  at("found").replaceChildren(...lines);
  at("found").hidden = !lines.length;
  search.setAttribute("aria-expanded", String(lines.length > 0));
  activate(lines.length ? 0 : -1);
}

function find() {
  newest("search", async (signal) => {
    await pause(80, signal);
    const query = search.value;
    const model = at("first").value;
    const { items } = await ask("v1/items/search", { query, limit: 20, model }, signal);
    if (document.activeElement !== search) return;
    show_found(items);
    at("search-note").textContent = items.length ? "" : "No item has this name or id.";
  });
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("", "AbortError"));
    });
  });
}

search.addEventListener("input", find);
search.addEventListener("focus", find);
search.addEventListener("blur", () => {
  if (running.search) running.search.abort();
  close_found();
});
search.addEventListener("keydown", (event) => {
  const n = state.found.length;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (!n) find();
    else activate((state.active + (event.key === "ArrowDown" ? 1 : n - 1)) % n);
  } else if (event.key === "Enter") {
    event.preventDefault();
    if (state.active >= 0) add(state.found[state.active]);
  } else if (event.key === "Escape") {
    search.value = "";
    close_found();
  }
});

/* ---- history ---- */

function add(item) {
  state.history.push(item);
  search.value = "";
  close_found();
  history_changed();
}

function move(from, to) {
  const [item] = state.history.splice(from, 1);
  state.history.splice(to, 0, item);
  history_changed();
  focus_tool(to, to < from ? 0 : 1);
}

function remove(index) {
  state.history.splice(index, 1);
  history_changed();
  if (state.history.length) focus_tool(Math.min(index, state.history.length - 1), 2);
  else search.focus();
}

function focus_tool(index, tool) {
  const tools = at("history").children[index].querySelectorAll("button");
  const wanted = tools[tool];
  (wanted.disabled ? tools[2] : wanted).focus();
}

function history_changed() {
  const last = state.history.length - 1;
  const lines = state.history.map((item, index) => {
    const name = label_of(item);
    const earlier = button(`Move ${name} up, to be older`, "↑", () => move(index, index - 1));
    const later = button(`Move ${name} down, to be newer`, "↓", () => move(index, index + 1));
    const out = button(`Remove ${name}`, "✕", () => remove(index));
    earlier.disabled = index === 0;
    later.disabled = index === last;
    return make("li", {}, naming(item), make("span", { class: "tools" }, earlier, later, out));
  });
  at("history").replaceChildren(...lines);
  at("empty").hidden = last >= 0;
  at("history-tools").hidden = last < 0;
  refresh();
}

at("clear").addEventListener("click", () => {
  state.history = [];
  history_changed();
  search.focus();
});

/* ---- lists ---- */

function chosen() {
  const names = [at("first").value, at("second").value].filter(Boolean);
  return names.map((name) => state.models.find((model) => model.name === name));
}

function request_of(model) {
  const body = {
    model: model.name,
    history: state.history.map((item) => item.item_id),
    k: Number(at("length").value),
    filter_seen: !at("seen").checked,
  };
  const mmr = Number(at("mmr").value) / 100;
  if (mmr && model.can_diversify) body.mmr = mmr;
  return body;
}

function refresh() {
  const models = chosen();
  at("mmr").disabled = !models.some((model) => model.can_diversify);
  at("lists").classList.add("busy");
  newest("lists", async (signal) => {
    await pause(40, signal);
    const asked = models.map((model) => ask("v1/recommend", request_of(model), signal));
    show_lists(models, await Promise.all(asked));
  }).then((is_newest) => is_newest && at("lists").classList.remove("busy"));
  show_cards(models);
  show_augmented(models);
}

function show_lists(models, answers) {
  const ranks = answers.map((answer) => new Map(answer.items.map((item) => [item.item_id, item.rank])));
  const lists = answers.map((answer, number) => {
    const other = answers.length === 2 && models[0] !== models[1] ? ranks[1 - number] : null;
    return list_of(models[number], answer, other);
  });
  at("lists").replaceChildren(...lists);
  const fixed = models.filter((model) => !model.can_diversify).map((model) => model.name);
  const notes = [];
  if (fixed.length && (Number(at("mmr").value) || fixed.length === models.length)) {
    notes.push(`No item vectors, so no diversity: ${fixed.join(", ")}.`);
  }
  if (models.some((model) => model.can_diversify) && Number(at("mmr").value)) {
    notes.push("Diverse lists do not descend by score.");
  }
  if (answers.length === 2 && models[0] !== models[1]) {
    const shared = [...ranks[0].keys()].filter((id) => ranks[1].has(id)).length;
    notes.push(`${shared} of ${answers[0].items.length} items are in both lists.`);
  }
  at("list-note").textContent = notes.join(" ");
}

function list_of(model, answer, other) {
  const by_popularity = answer.source === "popularity";
  const is_chance = model.draws_noise;
  const tag = by_popularity
    ? is_chance ? "by popularity: its share" : "by popularity: how often chosen"
    : is_chance ? "probability ± spread over draws" : "score";
  const title = make("h3", {}, make("bdi", {}, plain(model.name)), make("span", { class: "tag" }, tag));
  const scores = answer.items.map((item) => item.score);
  const high = Math.max(...answer.items.map((item) => item.score + (item.spread || 0)));
  // the zero of scores means nothing: their bars go from a tenth, of the lowest, to all
  const least = Math.min(...scores);
  const low = is_chance || by_popularity ? 0 : least - ((high - least) / 9 || 1);
  const lines = answer.items.map((item) => line_of(item, low, high, is_chance, other));
  const list = lines.length
    ? make("ol", { class: "list" }, ...lines)
    : make("p", { class: "small" }, "No item is left to show.");
  const unknown = answer.n_unknown
    ? make("p", { class: "small" }, `${answer.n_unknown} chosen items are not known to this model.`)
    : null;
  return make("div", { "data-model": model.name }, title, unknown, list);
}

function line_of(item, low, high, is_chance, other) {
  const score = make("div", { class: "score" }, is_chance ? percent(item.score) : number(item.score));
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  const span = high - low || 1;
  const share = (value) => `${Math.max(0, Math.min(1, (value - low) / span)) * 100}%`;
  const filled = document.createElement("i");
  filled.style.width = share(item.score);
  bar.append(filled);
  if (item.spread) {
    score.append(make("div", { class: "more" }, `± ${percent(item.spread, 2)}`));
    const range = document.createElement("b");
    range.style.left = share(item.score - item.spread);
    range.style.right = `${100 - parseFloat(share(item.score + item.spread))}%`;
    bar.append(range);
  }
  const both = other && other.has(item.item_id)
    ? make("div", { class: "both" }, `in both lists, there number ${other.get(item.item_id)}`)
    : null;
  return make("li", {}, make("span", { class: "rank" }, String(item.rank)), naming(item), score, bar, both);
}

function percent(value, digits = 3) {
  return `${(100 * value).toPrecision(digits)} %`;
}

function number(value) {
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toPrecision(4);
}

/* ---- augmenter ---- */

function show_augmented(models) {
  const model = models.find((candidate) => candidate.augmenter);
  at("augmenter").hidden = !model;
  if (!model) return;
  if (!state.history.length) {
    at("augmenter-note").textContent = "Choose an item, and see what would be written into the history.";
    at("written").replaceChildren();
    return;
  }
  newest("augmenter", async (signal) => {
    await pause(400, signal);
    const history = state.history.map((item) => item.item_id);
    const answer = await ask("v1/augment", { model: model.name, history, n_draws: 5 }, signal);
    const use = answer.training_only ? "for training only" : "before the model is asked";
    at("augmenter-note").textContent =
      `${answer.augmenter} of ${model.name}, ${use}. What is framed in blue was written; the share says in how ` +
      `many of ${answer.n_draws} draws of noise the same item was.`;
    at("written").replaceChildren(...answer.sequences.map(written_of));
  });
}

function written_of(items) {
  const lines = items.map((item) => {
    const line = make("li", item.generated ? { class: "new" } : {}, naming(item));
    if (item.generated) line.append(make("div", { class: "id" }, `in ${Math.round(100 * item.agreement)} % of draws`));
    return line;
  });
  return make("ol", { class: "written" }, ...lines);
}

/* ---- models ---- */

function show_cards(models) {
  const different = models.filter((model, index) => models.indexOf(model) === index);
  at("cards").replaceChildren(...different.map(card_of));
}

function card_of(model) {
  const facts = {
    method: model.method,
    items: model.n_items.toLocaleString("en"),
    "looks back": model.max_len === null ? "the whole history" : `the newest ${model.max_len} items`,
    "trained on": `${model.n_interactions.toLocaleString("en")} interactions of ${model.n_users.toLocaleString("en")} users`,
    ...(model.reads_times ? { times: "read where a request has them; this page sends none" } : {}),
    augmenter: model.augmenter || "none",
    checksum: model.sha256.slice(0, 16),
  };
  const listed = (values) =>
    Object.entries(values).flatMap(([name, value]) => [make("dt", {}, plain(name)), make("dd", {}, plain(value))]);
  const settings = Object.fromEntries(
    Object.entries(model.settings).map(([name, value]) => [name, value === null ? "none" : typeof value === "object" ? JSON.stringify(value) : value]),
  );
  return make(
    "div",
    {},
    make("h3", {}, make("bdi", {}, plain(model.name))),
    make("dl", { class: "facts" }, ...listed(facts)),
    make("details", {}, make("summary", {}, "Settings"), make("dl", { class: "facts" }, ...listed(settings))),
  );
}

/* ---- beginning ---- */

function options_of(select, names, value) {
  select.replaceChildren(...names.map(([name, shown]) => make("option", { value: name }, plain(shown))));
  select.value = value;
}

function begin() {
  newest("models", async (signal) => {
    const { models } = await ask("v1/models", undefined, signal);
    state.models = models;
    const names = models.map((model) => [model.name, model.name]);
    options_of(at("first"), names, models[0].name);
    options_of(at("second"), [["", "none"], ...names], models.length > 1 ? models[1].name : "");
    options_of(at("length"), [5, 10, 20, 50].map((n) => [String(n), String(n)]), "10");
    at("key-form").hidden = true;
    at("everything").hidden = false;
    history_changed();
  });
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  sessionStorage.setItem("diffuserec-key", key);
  begin();
});
at("mmr").addEventListener("input", () => {
  at("mmr-value").textContent = `${at("mmr").value} %`;
  refresh();
});
for (const id of ["first", "second", "length", "seen"]) at(id).addEventListener("change", refresh);
begin();
