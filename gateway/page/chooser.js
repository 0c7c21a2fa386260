// Which model, in which version.
import { html } from "./lib.js";

const when = (version) => new Date(version.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

const option = (value, chosen, label = value) =>
  html`<option key=${value} value=${value} selected=${value === chosen}>${label}</option>`;

/** `choose(model, version)`; without a version the newest is meant. */
export function Chooser({ models, model, versions, version, choose }) {
  return html`<div class="chooser">
    <div class="field">
      <label for="model">Model</label>
      <select id="model" value=${model} onChange=${(event) => choose(event.target.value)}>
        ${models.map(({ owner, name }) => option(`${owner}/${name}`, model))}
      </select>
    </div>
    ${
      versions.length > 1 &&
      html`<div class="field">
      <label for="version">Version</label>
      <select id="version" value=${version} onChange=${(event) => choose(model, event.target.value)}>
        ${versions.map((each) => option(each.id, version, `${each.id.slice(0, 8)}, ${when(each)}`))}
      </select>
    </div>`
    }
  </div>`;
}
