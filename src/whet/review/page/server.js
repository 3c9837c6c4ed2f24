// Talks to the server. An answer that does not arrive is kept and sent again until it does.

const AGAIN_AFTER = 1500; // milliseconds

/** The server has understood the request and refused it; the message says why. */
export class Refused extends Error {}

async function once(path, body) {
  const asked = body === undefined
    ? {}
    : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, { ...asked, cache: "no-store" });
  const content = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Refused(content.error ?? `the server failed with status ${response.status}`);
  }
  return content;
}

/**
 * Ask until the server answers.
 * @param {string} path below the page's own address
 * @param {object} [body] sent with POST; without one it is GET
 * @param {(lost: boolean) => void} lost told whether the server can be reached
 */
export async function ask(path, body, lost) {
  for (;;) {
    try {
      const content = await once(path, body);
      lost(false);
      return content;
    } catch (error) {
      lost(!(error instanceof Refused));
      if (error instanceof Refused) throw error;
    }
    await new Promise((wake) => setTimeout(wake, AGAIN_AFTER));
  }
}

/** Ask once; undefined where there is no answer. For what the page can do without. */
export async function tryAsk(path, body) {
  try {
    return await once(path, body);
  } catch {
    return undefined;
  }
}
