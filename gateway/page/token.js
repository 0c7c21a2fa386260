// Who asks: the token, kept for this tab, or on this device if so chosen.
import { forgetToken, keepToken, token } from "./api.js";
import { html, useEffect, useRef, useState } from "./lib.js";

const ASKED = "The gateway printed a token when it started; paste it here.";
const REFUSED = "The gateway does not take this token; give another.";

/** `wanted`: the API asks for one. `done` is called when there is a new one, `close` when it is put away. */
export function TokenDialog({ wanted, done, close }) {
  const dialog = useRef(null);
  const [value, setValue] = useState("");
  const [remember, setRemember] = useState(false);
  useEffect(() => dialog.current.showModal(), []);
  const save = (event) => {
    event.preventDefault();
    keepToken(value.trim(), remember);
    done();
  };
  const forget = () => {
    forgetToken();
    done();
  };
  return html`<dialog class="ask" ref=${dialog} onClose=${close} aria-labelledby="token-title">
    <form onSubmit=${save}>
      <h2 id="token-title">Token</h2>
      <p>${wanted && token() ? REFUSED : ASKED}</p>
      <label for="token">Token</label>
      <input id="token" type="password" autocomplete="off" required value=${value} onInput=${(event) => setValue(event.target.value)} />
      <label class="line"><input type="checkbox" checked=${remember}
        onChange=${(event) => setRemember(event.target.checked)} /> Keep it on this device</label>
      <p class="actions">
        <button class="primary">Use it</button>
        ${token() && html`<button type="button" onClick=${forget}>Forget the present one</button>`}
        <button type="button" onClick=${() => dialog.current.close()}>Close</button>
      </p>
    </form>
  </dialog>`;
}
