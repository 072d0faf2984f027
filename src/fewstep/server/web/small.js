// Small functions that the other files share.

export const at = (id) => document.getElementById(id);
export const make = (tag, attributes = {}, ...inner) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inner);
  return element;
};
export const write = (element, text) => { if (element.textContent !== text) element.textContent = text; };
export const number = (value, digits = 0) => (Number.isFinite(value) ? value.toFixed(digits) : "–");
export const seconds = (ms) => (ms < 999.5 ? `${number(ms)} ms` : `${number(ms / 1000, 2)} s`);
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
export const rank = (values, share) => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(share * values.length))];
export const keep = (list, value, most) => { list.push(value); if (list.length > most) list.shift(); };
