// What a learner should know of the lessons in the browser, in plain sentences over the page.
// One page of lessons has a kernel, and one kernel: two of them take more memory than a browser gives.
"use strict";
{
    const home = new URL("..", location.href).pathname; // the same for all pages of these lessons
    const say = (sentence) => {
        const line = document.createElement("div"), close = document.createElement("button");
        line.className = "qlearn-says";
        line.setAttribute("role", "status");
        line.style.cssText = "position: fixed; z-index: 10000; left: 0; right: 0; bottom: 0; padding: 10px 16px; "
            + "font: 15px/1.5 system-ui, sans-serif; color: #111; background: #ffe9a8; border-top: 1px solid #8a6d00";
        line.append(sentence, " ");
        close.textContent = "Close";
        close.onclick = () => line.remove();
        line.append(close);
        document.querySelectorAll(".qlearn-says").forEach((earlier) => earlier.remove());
        document.body.append(line);
    };
    const instead = (sentence) => { // nothing else: this page starts no kernel
        window.stop();
        const page = document.createElement("main");
        page.className = "qlearn-says";
        page.style.cssText = "max-width: 36em; margin: 20vh auto; padding: 0 16px; font: 18px/1.6 system-ui, sans-serif";
        page.append(sentence);
        document.body.replaceChildren(page);
        document.title = "qlearn";
    };

    // Another tab. The lock ends with its page.
    navigator.locks?.request(`qlearn ${home}`, { ifAvailable: true }, (lock) => {
        if (lock) return new Promise(() => {});
        instead("One lesson at a time: another tab has a lesson open, and two at once are too much for a browser. "
            + "Close it, and this page goes on by itself.");
        navigator.locks.request(`qlearn ${home}`, () => location.reload());
    });

    // The arrows move a slider that has the focus; JupyterLab would take them to go from cell to cell.
    document.addEventListener("focusin", ({ target }) => {
        if (target.matches?.(".noUi-handle")) target.setAttribute("data-lm-suppress-shortcuts", "true");
    });

    if (!("serviceWorker" in navigator)) say(
        "This browser has no service workers here, as in a private window or on a page without https. The lessons run; "
        + "files that you write in a cell are not kept, and input() does not work.");

    // A second lesson in this tab: its kernel takes the place of the first one's.
    const watch = (app) => {
        const { sessions } = app.serviceManager;
        let newest = [];
        sessions.runningChanged.connect((_, running) => {
            const ids = running.map(({ id }) => id);
            newest = [...newest.filter((id) => ids.includes(id)), ...ids.filter((id) => !newest.includes(id))];
            for (const { id, path } of running) if (id !== newest.at(-1)) {
                sessions.shutdown(id);
                say(`One lesson at a time: the kernel of ${path} has been stopped for the lesson that you have opened. `
                    + "What you wrote there is kept; to go on with it, run its cells again.");
            }
        });
    };
    const waiting = setInterval(() => {
        if (!window.jupyterapp?.serviceManager) return;
        clearInterval(waiting);
        watch(window.jupyterapp);
    }, 100);
}
