// SPDX-License-Identifier: MIT
// Before anything is drawn: dark or light, where the user has said which.
try {
    const theme = JSON.parse(localStorage.getItem('dllama.theme'));
    if (theme === 'dark' || theme === 'light') document.documentElement.dataset.theme = theme;
} catch {
    // no storage, or something else in it: the system decides
}
