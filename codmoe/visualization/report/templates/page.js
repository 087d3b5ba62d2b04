"use strict";
// Nothing is made of text that names hold: all of it goes through textContent.
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const make = (tag, settings = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), settings);
  element.append(...children);
  return element;
};
const STEP = 50, SIDE = 560, TINT = [150, 40, 255], FOUND = [86, 180, 233], FALSE = [230, 159, 0];
const VIEWS = { map: "map", mask: "mask on the image", errors: "right and wrong" };
const title = (source) => ({ mixture: "ensemble", uniform: "equal weights" })[source] ?? source;
const lower = new Set(data.lower);
const shown = (value, digits = 3) => (value == null ? "-" : value.toFixed(digits));
const mean = (values) => {
  const there = values.filter((value) => value != null);
  return there.length ? there.reduce((a, b) => a + b, 0) / there.length : null;
};
const options = (id, pairs) => {
  $(id).replaceChildren(...pairs.map(([value, text]) => make("option", { value, textContent: text })));
  $(id).parentElement.hidden = pairs.length < 2;
};

let set, measure, order = { key: "mixture", down: false }, found = [], rows = 0, at = 0, strip = null;

const experts = () => data.experts.filter((name) => set.values[name]);
const value = (source, i, key = measure) => set.values[source]?.[key]?.[i] ?? null;
const best = (i) => {
  const pick = lower.has(measure) ? Math.min : Math.max;
  const values = experts().map((name) => value(name, i)).filter((v) => v != null);
  return values.length ? pick(...values) : null;
};
const gain = (i) => {
  const [ours, theirs] = [value("mixture", i), best(i)];
  return ours == null || theirs == null ? null : (ours - theirs) * (lower.has(measure) ? -1 : 1);
};
const weightsOf = (i) => data.experts
  .map((name) => [name, set.weights[name]?.[i] ?? 0])
  .filter(([, weight]) => weight > 0).sort((a, b) => b[1] - a[1]);
const keyOf = {
  name: (i) => set.stems[i],
  gain,
  weights: (i) => weightsOf(i)[0]?.[1] ?? null,
};
const sortKey = (i) => (keyOf[order.key] ? keyOf[order.key](i) : value(order.key, i));

// ---- the list

function columns() {
  const sources = ["mixture", ...experts()].filter((name) => set.values[name]);
  const heads = [["name", "image"], ...sources.map((name) => [name, title(name)])];
  if (experts().length > 1) heads.push(["gain", "gain"]);
  if (Object.keys(set.weights).length) heads.push(["weights", "weights"]);
  return heads;
}

function drawHead() {
  const pictured = set.pictures.some(Boolean);
  const row = make("tr");
  if (pictured) row.append(make("th", { scope: "col", className: "panels", textContent: set.panels.map(title).join(" · ") }));
  for (const [key, text] of columns()) {
    const button = make("button", { type: "button", textContent: text });
    button.onclick = () => {
      order = { key, down: order.key === key ? !order.down : key !== "name" };
      search();
    };
    const head = make("th", { scope: "col", className: ["name", "weights"].includes(key) ? "" : "num" }, button);
    head.dataset.key = key;
    row.append(head);
  }
  $("list").tHead.replaceChildren(row);
}

function search() {
  const text = $("name").value.toLowerCase(), first = $("first").value;
  const [attribute, bin] = $("bin").value ? JSON.parse($("bin").value) : [];
  found = set.stems.map((_, i) => i).filter((i) =>
    set.stems[i].toLowerCase().includes(text)
    && (!attribute || set.attributes[attribute][1][i] === bin)
    && (!first || weightsOf(i)[0]?.[0] === first));
  const keys = new Map(found.map((i) => [i, sortKey(i)]));
  found.sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    if (x == null || y == null) return (x == null) - (y == null) || a - b;
    const by = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return (order.down ? -by : by) || a - b;
  });
  for (const head of $("list").tHead.rows[0].cells) {
    const sorted = head.dataset.key === order.key ? (order.down ? "descending" : "ascending") : "";
    sorted ? head.setAttribute("aria-sort", sorted) : head.removeAttribute("aria-sort");
  }
  const total = set.stems.length.toLocaleString("en");
  const average = shown(mean(found.map((i) => value("mixture", i))));
  $("count").textContent = `${found.length.toLocaleString("en")} of ${total} images, `
    + `ensemble's mean ${measure} ${average}`;
  rows = 0;
  $("list").tBodies[0].replaceChildren();
  more();
}

function more() {
  const pictured = set.pictures.some(Boolean);
  for (const position of found.keys()) {
    if (position < rows) continue;
    if (position >= rows + STEP) break;
    $("list").tBodies[0].append(rowOf(found[position], position, pictured));
  }
  rows = Math.min(rows + STEP, found.length);
  $("more").hidden = rows >= found.length;
}

function rowOf(i, position, pictured) {
  const row = make("tr");
  const open = () => view(position);
  if (pictured) {
    const cell = make("td", { className: "strip", onclick: open });
    if (set.pictures[i]) {
      const alt = `${set.stems[i]}: ${set.panels.map(title).join(", ")}`;
      cell.append(make("img", { src: `data:image/webp;base64,${set.pictures[i]}`, alt, loading: "lazy" }));
    }
    row.append(cell);
  }
  for (const [key] of columns()) {
    if (key === "name") {
      const button = make("button", { type: "button", textContent: set.stems[i], onclick: open });
      row.append(make("td", { className: "name" }, button));
    } else if (key === "weights") row.append(make("td", {}, ...bars(i)));
    else if (key === "gain") {
      const points = gain(i), sign = points > 0 ? "+" : "";
      row.append(make("td", { className: "num", textContent: points == null ? "-" : sign + shown(points) }));
    } else {
      const cell = make("td", { className: "num" }), own = value(key, i);
      const wins = own != null && experts().length > 1 && experts().includes(key) && own === best(i);
      cell.append(wins ? make("strong", { textContent: shown(own) }) : shown(own));
      row.append(cell);
    }
  }
  return row;
}

function bars(i) {
  const weights = weightsOf(i), bar = make("span", { className: "bars", ariaHidden: "true" });
  for (const [name, weight] of weights) {
    const part = make("span");
    part.style.width = `${100 * weight}%`;
    part.style.background = data.colours[name];
    bar.append(part);
  }
  const text = weights.map(([name, weight]) => `${name} ${shown(weight, 2)}`).join(", ");
  return [bar, make("span", { className: "soft", textContent: text })];
}

// ---- one image

function view(position) {
  at = position;
  const i = found[at];
  $("title").textContent = set.stems[i];
  $("place").textContent = `${at + 1} of ${found.length}`;
  $("previous").disabled = at === 0;
  $("next").disabled = at === found.length - 1;
  const chosen = picked("map") ?? "mixture";
  const maps = set.panels.slice(1);
  choices("maps", "map", maps.map((name) => {
    const own = value(name, i), weight = set.weights[name]?.[i];
    const told = own == null ? "" : ` ${measure} ${shown(own)}`;
    return [name, title(name) + told + (weight > 0 ? `, weight ${shown(weight, 2)}` : "")];
  }), maps.includes(chosen) ? chosen : "mixture");
  const sources = ["mixture", ...experts(), "uniform", "oracle"].filter((name) => set.values[name]);
  const head = make("tr", {}, make("th"));
  for (const name of sources) head.append(make("th", { scope: "col", className: "num", textContent: title(name) }));
  const body = data.measures.map((key) => {
    const row = make("tr", { className: key === measure ? "chosen" : "" });
    row.append(make("th", { scope: "row", textContent: key, title: data.conventions[key] }));
    for (const name of sources) row.append(make("td", { className: "num", textContent: shown(value(name, i, key)) }));
    return row;
  });
  $("figures").replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
  $("traits").textContent = Object.entries(set.attributes)
    .map(([name, [bins, of]]) => `${name.replaceAll("_", " ")}: ${bins[of[i]]}`).join(" · ");
  const viewer = $("viewer");
  if (!viewer.open) viewer.showModal();
  strip = null;
  $("canvas").hidden = !set.pictures[i];
  if (!set.pictures[i]) return void ($("legend").textContent = "No picture of this image is in the page.");
  const picture = new Image();
  picture.onload = () => {
    strip = picture;
    draw();
  };
  picture.src = `data:image/webp;base64,${set.pictures[i]}`;
}

function choices(id, name, pairs, chosen) {
  const legend = $(id).firstElementChild;
  $(id).replaceChildren(legend, ...pairs.map(([key, text]) => {
    const input = make("input", { type: "radio", name, value: key, checked: key === chosen, onchange: draw });
    return make("label", {}, input, ` ${text}`);
  }));
}

const picked = (name) => document.querySelector(`input[name="${name}"]:checked`)?.value;

function pixels(panel, width, height) {
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  const step = strip.naturalWidth / set.panels.length;
  context.imageSmoothingQuality = "high";
  context.drawImage(strip, set.panels.indexOf(panel) * step, 0, step, strip.naturalHeight, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

function draw() {
  if (!strip) return;
  const step = strip.naturalWidth / set.panels.length, scale = SIDE / Math.max(step, strip.naturalHeight);
  const [width, height] = [Math.round(step * scale), Math.round(strip.naturalHeight * scale)];
  const how = picked("view"), level = $("threshold").value / 100, name = picked("map");
  const base = pixels("image", width, height), out = base.data;
  const map = pixels(name, width, height).data, truth = pixels("truth", width, height).data;
  const edge = Math.round(width * $("split").value / 100);
  let both = 0, either = 0;
  for (let y = 0, p = 0; y < height; y++) {
    for (let x = 0; x < width; x++, p += 4) {
      const inside = map[p] / 255 > level, real = truth[p] > 127;
      both += inside && real;
      either += inside || real;
      if (x < edge) continue;
      if (x - edge < 2) out[p] = out[p + 1] = out[p + 2] = 255;
      else if (how === "map") out[p] = out[p + 1] = out[p + 2] = map[p];
      else {
        let colour = null, share = 0.55;
        if (how === "mask") colour = inside ? TINT : null;
        else if (inside) colour = real ? FOUND : FALSE;
        else if (real) {
          colour = (x + y) % 12 < 6 ? [20, 20, 20] : [255, 255, 255];
          share = 0.8;
        }
        if (colour) for (const c of [0, 1, 2]) out[p + c] = out[p + c] * (1 - share) + colour[c] * share;
      }
    }
  }
  Object.assign($("canvas"), { width, height }).getContext("2d").putImageData(base, 0, 0);
  $("canvas").ariaLabel = `${set.stems[found[at]]}: the image, and right of the line ${VIEWS[how]} of ${title(name)}`;
  $("level").textContent = level.toFixed(2);
  $("threshold").disabled = how === "map";
  const iou = `IoU at ${level.toFixed(2)}, of this small picture: ${shown(either ? both / either : 1, 2)}`;
  const swatch = (colour, text) => {
    const mark = make("span", { className: "swatch" });
    mark.style.background = colour;
    return make("span", { className: "told" }, mark, text);
  };
  const css = (colour) => `rgb(${colour})`;
  const hatch = "repeating-linear-gradient(135deg, #222 0 3px, #fff 3px 6px)";
  const legends = {
    map: ["black: 0, white: 1"],
    mask: [swatch(css(TINT), "above the threshold"), iou],
    errors: [swatch(css(FOUND), "found"), swatch(css(FALSE), "false alarm"), swatch(hatch, "missed"), iou],
  };
  $("legend").replaceChildren(...legends[how]);
}

const step = (by) => {
  if (found[at + by] === undefined) return;
  while (at + by >= rows) more();
  view(at + by);
};
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("viewer").onkeydown = (event) => {
  const free = event.target.tagName !== "INPUT" && !event.ctrlKey && !event.metaKey && !event.altKey;
  const radios = [...document.querySelectorAll('input[name="map"]')];
  if (free && event.key === "ArrowLeft") step(-1);
  else if (free && event.key === "ArrowRight") step(1);
  else if (event.key === "v") {
    const views = [...document.querySelectorAll('input[name="view"]')];
    views[(views.findIndex((input) => input.checked) + 1) % views.length].click();
  } else if (radios[event.key - 1]) radios[event.key - 1].click();
};
$("canvas").onpointerdown = $("canvas").onpointermove = (event) => {
  if (!event.buttons) return;
  const box = $("canvas").getBoundingClientRect();
  $("split").value = 100 * (event.clientX - box.left) / box.width;
  draw();
};
$("split").oninput = $("threshold").oninput = draw;
choices("views", "view", Object.entries(VIEWS), "errors");

// ---- which expert where

function where() {
  const table = $("where");
  if (!table) return;
  const one = data.datasets[$("where-set").value], key = $("where-measure").value;
  const names = data.experts.filter((name) => one.values[name]);
  const sources = [...names, "mixture"], weighed = names.filter((name) => one.weights[name]);
  const all = one.stems.map((_, i) => i);
  const of = (source, images) => mean(images.map((i) => one.values[source][key]?.[i]));
  const share = (name, images) => mean(images.map((i) => one.weights[name][i]));
  const usual = Object.fromEntries(weighed.map((name) => [name, share(name, all)]));
  const span = 0.05 * Math.max(1, of("mixture", all) ?? 1);
  const cell = (number, strength, n, strong = false) => {
    const made = make("td", { className: n < data.few ? "num few" : "num" });
    made.append(strong ? make("strong", { textContent: shown(number) }) : shown(number));
    const much = Math.max(-1, Math.min(1, strength || 0));
    if (n >= data.few) made.style.background = `rgba(var(--${much > 0 ? "more" : "less"}), ${0.6 * Math.abs(much)})`;
    return made;
  };
  const body = [];
  const line = (attribute, bin, images) => {
    const values = names.map((name) => of(name, images)), middle = mean(values);
    const good = lower.has(key) ? -1 : 1;
    const top = Math.max(...values.map((v) => (v == null ? -Infinity : good * v)));
    body.push(make("tr", {}, make("th", { scope: "row", textContent: attribute }), make("td", { textContent: bin }),
      make("td", { className: "num", textContent: images.length.toLocaleString("en") }),
      ...names.map((name, k) => cell(values[k], good * (values[k] - middle) / span, images.length,
        names.length > 1 && good * values[k] === top)),
      cell(of("mixture", images), 0, images.length),
      ...weighed.map((name) => cell(share(name, images), (share(name, images) - usual[name]) / 0.3, images.length))));
  };
  line("all", "", all);
  for (const [name, [bins, places]] of Object.entries(one.attributes)) {
    bins.forEach((bin, k) => line(k ? "" : name.replaceAll("_", " "), bin, all.filter((i) => places[i] === k)));
  }
  const heads = ["attribute", "images", "n", ...sources.map(title), ...weighed.map((name) => `weight ${name}`)];
  const head = make("tr", {}, ...heads.map((text, k) => make("th", { scope: "col", textContent: text, className: k > 1 ? "num" : "" })));
  table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...body));
}

// ---- the start

function changeSet() {
  set = data.datasets[$("set").value];
  const there = data.measures.filter((key) => set.values.mixture[key]);
  const kept = $("measure").value;
  options("measure", there.map((key) => [key, key]));
  if (there.includes(kept)) $("measure").value = kept;
  const bins = Object.entries(set.attributes).flatMap(([name, [labels]]) =>
    labels.map((text, k) => [JSON.stringify([name, k]), `${name.replaceAll("_", " ")}: ${text}`]));
  options("bin", [["", "all images"], ...bins]);
  const named = Object.keys(set.weights);
  options("first", [["", "any expert"], ...(named.length > 1 ? named.map((name) => [name, name]) : [])]);
  changeMeasure();
}

function changeMeasure() {
  measure = $("measure").value;
  $("meaning").textContent = `${measure}: ${data.conventions[measure]}`;
  drawHead();
  search();
}

const sets = data.datasets.map((one, k) => [k, one.name]);
options("set", sets);
$("set").onchange = changeSet;
$("measure").onchange = changeMeasure;
$("name").oninput = $("bin").onchange = $("first").onchange = search;
$("find").onsubmit = (event) => event.preventDefault();
$("more").onclick = more;
new IntersectionObserver((seen) => seen[0].isIntersecting && rows < found.length && more()).observe($("more"));
changeSet();
if ($("where")) {
  const counted = sets.filter(([k]) => Object.keys(data.datasets[k].attributes).length);
  options("where-set", counted);
  options("where-measure", data.measures.map((key) => [key, key]));
  $("where-measure").value = measure;
  $("where-set").onchange = $("where-measure").onchange = where;
  where();
}
})();
