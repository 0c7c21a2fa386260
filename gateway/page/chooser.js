// Which model, in which version.
import { html } from "./lib.js";

const when = (version) => new Date(version.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

/** `choose(model, version)`; without a version the newest is meant. */
export function Chooser({ models, model, versions, version, choose }) {
  return html`<div class="chooser">
    <div class="field">
      <label for="model">Model</label>
      <select id="model" value=${model} onChange=${(event) => choose(event.target.value)}>
        ${models.map((each) => `${each.owner}/${each.name}`).map((name) => html`<option key=${name} value=${name} selected=${name === model}>${name}</option>`)}
      </select>
    </div>
    ${versions.length > 1 && html`<div class="field">
      <label for="version">Version</label>
      <select id="version" value=${version} onChange=${(event) => choose(model, event.target.value)}>
        ${versions.map((each) => html`<option key=${each.id} value=${each.id} selected=${each.id === version}>${each.id.slice(0, 8)}, ${when(each)}</option>`)}
      </select>
    </div>`}
  </div>`;
}
