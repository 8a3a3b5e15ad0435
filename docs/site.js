// A formula that is wider than a phone scrolls; whoever has no mouse reaches it with the keyboard.
function reachable() {
    for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
        if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
        else formula.removeAttribute("tabindex");
    }
}
window.addEventListener("load", () => window.MathJax?.startup?.promise?.then(reachable));
window.addEventListener("resize", reachable);
