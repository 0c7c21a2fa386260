// The one place that knows which libraries draw the page.
import htm from "./vendor/htm.js";
import { h, render } from "./vendor/preact.js";

export { render };
export { useEffect, useId, useMemo, useRef, useState } from "./vendor/hooks.js";
export const html = htm.bind(h);
