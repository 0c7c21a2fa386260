// A version's inputs as a form: what people reach for, and the rest folded away in groups that a word finds.
import { Field } from "./fields.js";
import { html, useState } from "./lib.js";

/** `submit` is called with nothing; `errors` are by field, under "" what belongs to none. */
export function Form({ fields, values, set, errors, busy, verb, submit, children }) {
  const sending = Object.values(values).some((value) => value?.pending);
  const send = (event) => {
    event.preventDefault();
    if (!busy && !sending) submit();
  };
  const keys = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
  };
  const one = (field) => html`<${Field} key=${field.name} field=${field} value=${values[field.name]}
    error=${errors[field.name]} set=${(value) => set(field.name, value)} />`;
  return html`<form onSubmit=${send} onKeyDown=${keys} novalidate>
    ${children}
    <div class="fields">${fields.filter((field) => field.usual).map(one)}</div>
    <${Rest} fields=${fields.filter((field) => !field.usual)} errors=${errors} one=${one} />
    <div class="submit">
      ${errors[""] && html`<p class="error" role="alert">${errors[""]}</p>`}
      <button class="primary" disabled=${busy || sending}>${sending ? "Sending files" : verb}</button>
      <span class="hint keys">Ctrl+Enter</span>
    </div>
  </form>`;
}

function Rest({ fields, errors, one }) {
  const [word, setWord] = useState("");
  const [open, setOpen] = useState(false);
  if (!fields.length) return null;
  const wrong = fields.some((field) => errors[field.name]);
  const found = fields.filter((field) =>
    `${field.name} ${field.label} ${field.help}`.toLowerCase().includes(word.toLowerCase()),
  );
  const groups = grouped(found);
  return html`<details class="rest" open=${open || wrong} onToggle=${(event) => setOpen(event.target.open)}>
    <summary>All settings <span class="hint">${fields.length} more</span></summary>
    <input type="search" class="find" placeholder="Find a setting" aria-label="Find a setting" value=${word}
      onInput=${(event) => setWord(event.target.value)}
      onKeyDown=${(event) => event.key === "Enter" && !event.ctrlKey && !event.metaKey && event.preventDefault()} />
    ${[...groups].map(
      ([name, group]) => html`<fieldset key=${name}>
        <legend>${name}</legend>
        <div class="fields">${group.map(one)}</div>
      </fieldset>`,
    )}
    ${found.length === 0 && html`<p class="hint">No setting has this word.</p>`}
  </details>`;
}

function grouped(fields) {
  const groups = new Map();
  for (const field of fields) groups.set(field.group, [...(groups.get(field.group) ?? []), field]);
  return groups;
}
