// Takes one step of a re-run after the other, while the page is open. Without it there is a button.
"use strict";
{
  const form = document.querySelector("form[data-rerun]");
  const bar = document.querySelector("progress");
  const told = document.getElementById("rerun-told");
  const wait = (time) => new Promise((resolve) => setTimeout(resolve, time));

  const goOn = async () => {
    form.hidden = true;
    for (;;) {
      const answer = await fetch(form.action, {
        method: "POST",
        body: new FormData(form),
        headers: { Accept: "application/json" },
      });
      if (!answer.ok) throw new Error(answer.statusText);
      const step = await answer.json();
      bar.max = step.total;
      bar.value = step.done;
      told.textContent = step.problem || step.sentence;
      if (step.problem) {
        form.hidden = false;
        return;
      }
      if (step.finished) {
        location.replace(location.pathname);
        return;
      }
      await wait(100);
    }
  };

  if (form) goOn().catch(() => { form.hidden = false; });
}
