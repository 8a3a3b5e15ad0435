// What a learner should know of the lessons in the browser, in plain sentences over the page.
