// Brings the page of all tasks up to date, unless somebody is about to do something there.
"use strict";
{
  const id = "mf-fleet";
  const isIdle = (part) =>
    !document.hidden &&
    !part.querySelector("input:checked, details[open]") &&
    !part.contains(document.activeElement);

  const refresh = async () => {
    const part = document.getElementById(id);
    if (!isIdle(part)) return;
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    // Somebody who has been logged out in the meantime is sent to another page.
    if (!answer.ok || answer.redirected) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById(id);
    if (fresh && isIdle(part)) part.replaceWith(fresh);
  };

  document.addEventListener("DOMContentLoaded", () => {
    const part = document.getElementById(id);
    if (part) setInterval(() => refresh().catch(() => {}), Number(part.dataset.refresh) * 1000);
  });
}
