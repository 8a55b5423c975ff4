// Elements and texts. Whatever comes from the catalog becomes text, never markup: there is no innerHTML here.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.setAttribute("class", value);
    else if (name in element && typeof value !== "string" && !name.startsWith("aria")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

export function h(name, attributes, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function s(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export function put(parent, ...children) {
  parent.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return parent;
}

export function clear(parent) {
  parent.replaceChildren();
}

let ids = 0;
export function newId(word) {
  ids += 1;
  return `${word}-${ids}`;
}

// A choice of one among several, as radio buttons that look like tabs.
export function choice(label, options, chosen, onchange) {
  const name = newId("choice");
  return h("fieldset", { class: "choice" }, h("legend", {}, label), options.map(([value, text]) => {
    const id = newId("option");
    return [
      h("input", {
        type: "radio", name, id, value, checked: value === chosen, onchange: () => onchange(value),
      }),
      h("label", { for: id }, text),
    ];
  }));
}

export function tick(label, checked, onchange, attributes) {
  const box = h("input", { type: "checkbox", checked, onchange: (event) => onchange(event.target.checked), ...attributes });
  return h("label", { class: "tick" }, box, label);
}

// Three digits, as people read them.
export function digits(value, n = 3) {
  if (value === null || value === undefined || !Number.isFinite(Number(value))) return "–";
  const number = Number(value);
  if (number !== 0 && (Math.abs(number) >= 1e6 || Math.abs(number) < 1e-3)) return number.toExponential(n - 1);
  return String(Number(number.toPrecision(n)));
}

export function length(metres, n = 3) {
  if (metres === null || metres === undefined) return "–";
  const [unit, name] = [[1e-3, "mm"], [1e-6, "µm"], [1e-9, "nm"]].find(([each]) => Math.abs(metres) >= each * 0.9999) || [1e-9, "nm"];
  return `${digits(metres / unit, n)} ${name}`;
}

const two = (value) => String(value).padStart(2, "0");
export function date(seconds) {
  if (!seconds) return "–";
  const d = new Date(seconds * 1000);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${two(d.getHours())}:${two(d.getMinutes())}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds > 0 && seconds < 0.1) return `${digits(seconds * 1000)} ms`;
  if (seconds < 60) return `${digits(seconds)} s`;
  return seconds < 3600 ? `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s` : `${digits(seconds / 3600)} h`;
}
