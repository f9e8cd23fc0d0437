// Signs in with a token. All addresses are relative: the dashboard may be mounted anywhere, and a proxy may name it otherwise.

const form = document.getElementById("login");
const token = document.getElementById("token");
const error = document.getElementById("login-error");
const button = form.querySelector("button");

const IN_WORDS = {
  401: "This token is not right.",
  404: "There is no dashboard here, or it may not be seen from your address.",
  429: "Too many attempts. Wait a little and try again.",
};

const NO_COOKIE =
  "The token is right, but the cookie did not come back. The browser refuses cookies, a proxy in front takes them away, or the app believes to be asked by https and is not.";

/** The server's words, as they stand at the beginning of a line. */
const sentence = (words) => (words ? `${words[0].toUpperCase()}${words.slice(1)}.` : null);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const value = token.value.trim();
  if (!value) return fail("Enter the token.");
  button.disabled = true;
  error.textContent = "";
  try {
    const response = await fetch("login", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: value }),
    });
    if (response.ok) {
      // Were the page just loaded now, whoever has no cookie would be asked for the token again, and never told why.
      if ((await fetch("api/stats", { cache: "no-store" })).status === 401) return fail(NO_COOKIE);
      remember();
      location.replace("./");
      return;
    }
    const data = await response.json().catch(() => null);
    fail(IN_WORDS[response.status] ?? sentence(data?.error) ?? `Signing in failed: the server answered ${response.status}.`);
  } catch {
    fail("The server did not answer. Is the app running?");
  } finally {
    button.disabled = false;
  }
});

function fail(sentence) {
  error.textContent = sentence;
  token.setAttribute("aria-invalid", "true");
  token.focus();
  token.select();
}

// The cookie cannot be seen from here; the page wants to know whether "sign out" makes sense.
function remember() {
  try {
    localStorage.setItem("echo-cache-signed-in", "1");
  } catch {
    // storage is forbidden: the page then shows no "sign out"
  }
}
